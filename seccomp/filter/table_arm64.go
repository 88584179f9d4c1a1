package filter

// tables: 64-bit programs and 32-bit ones.
var tables = [...]table{
	{audit: 0xc00000b7, socket: 198, socketpair: 199, bind: 200, connect: 203, listen: 201, sendto: 206, ring: 425},
	{audit: 0x40000028, socket: 281, socketpair: 288, bind: 282, connect: 283, listen: 284, sendto: 290, ring: 425},
}

const sysSeccomp = 277
