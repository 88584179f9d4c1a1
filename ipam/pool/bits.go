package pool

import "net/netip"

// last is the highest address of a masked prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(b) // of 4 or 16 bytes, as it came
	return addr
}

// cut is the n-th prefix of the given length inside a masked base that has at
// least n+1 of them.
func cut(base netip.Prefix, bits, n int) netip.Prefix {
	b := base.Addr().AsSlice()
	for bit := bits - 1; n > 0; bit, n = bit-1, n>>1 {
		if n&1 == 1 {
			b[bit/8] |= 0x80 >> (bit % 8)
		}
	}
	addr, _ := netip.AddrFromSlice(b) // of 4 or 16 bytes, as it came
	return netip.PrefixFrom(addr, bits)
}
