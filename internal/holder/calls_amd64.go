package holder

// operations are the calls that the filter of package seccomp/filter sends here, by
// architecture and number.
var operations = map[uint32]map[uint32]operation{
	0xc000003e: {49: bind, 42: connect, 50: listen, 44: sendto},
	0x40000003: {361: bind, 362: connect, 363: listen, 369: sendto, 102: socketcall},
}

// numberMask takes the bit of x32 away.
const numberMask = ^uint32(1 << 30)
