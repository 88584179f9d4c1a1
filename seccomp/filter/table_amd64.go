package filter

// tables: 64-bit programs, those of x32, which differ by bit 30 of the number, and
// 32-bit ones.
var tables = [...]table{
	{audit: 0xc000003e, mask: ^uint32(1 << 30), socket: 41, socketpair: 53, bind: 49, connect: 42, listen: 50, sendto: 44, ring: 425},
	{audit: 0x40000003, socket: 359, socketpair: 360, bind: 361, connect: 362, listen: 363, sendto: 369, socketcall: 102, ring: 425},
}

const sysSeccomp = 317
