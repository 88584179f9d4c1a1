package holder

import (
	"net/netip"
	"sync"
)

// ports remembers where a container's programs bound their ports, because a client
// of 127.0.0.1 may mean a server on the wildcard as well as one on the loopback
// address. The last one bound is taken; one that has closed is missed by nobody.
type ports struct {
	mu    sync.Mutex
	bound map[port]place
}

type port struct {
	datagram bool
	number   uint16
	six      bool // bound for IPv6 alone, or on an IPv6 address
}

type place int

const (
	unknown place = iota
	onOwn
	onLoopback
)

func (p *ports) note(at port, where place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bound == nil {
		p.bound = map[port]place{}
	}
	p.bound[at] = where
}

func (p *ports) find(at port) place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bound[at]
}

// inward is the address in the namespace that a container's wish to reach its own
// loopback leads to.
func (p *ports) inward(i Identity, ip netip.Addr, at port) netip.Addr {
	at.six = six(ip)
	if at.six {
		switch p.find(at) {
		case onLoopback:
			return i.Loopback6
		case onOwn:
			return i.own6()
		}
		if at.six = false; p.find(at) == onOwn {
			return mapped(i.own4())
		}
		return i.Loopback6
	}
	b := ip.Unmap().As4()[3]
	switch {
	case p.find(at) == onOwn:
		return like(ip, i.own4())
	case b == 0:
		b = 1
	}
	return like(ip, i.loopback4(b))
}
