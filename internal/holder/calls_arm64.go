package holder

// operations are the calls that the filter of package seccomp/filter sends here, by
// architecture and number.
var operations = map[uint32]map[uint32]operation{
	0xc00000b7: {200: bind, 203: connect, 201: listen, 206: sendto},
	0x40000028: {282: bind, 283: connect, 284: listen, 290: sendto},
}

const numberMask = ^uint32(0)
