package addrguard_test

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/netnstest"
)

// "A name of an abstract unix socket that one container holds cannot be taken by
// another (EADDRINUSE). It cannot be reached either."
func TestAbstractSockets(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, b := h.box(network, 1, v4), h.box(network, 2, v4)
	h.cgroup(a.cgroup + "/child")
	child := h.start(a.cgroup+"/child", h.spaces[network])
	h.cgroup(h.top + "/helper")
	if _, err := h.Admit(t.Context(), h.top+"/helper", addrguard.Identity{Exempt: true}); err != nil {
		t.Fatal(err)
	}
	helper := h.start(h.top+"/helper", h.spaces[network])
	h.cgroup(h.top + "/stranger")
	stranger := h.start(h.top+"/stranger", h.spaces[network])
	apart, denied, nobodys := unix.ECONNREFUSED, uint64(16), unix.EPERM
	if !unixSince(t) { // "Abstract unix sockets of neighbours can be reached."
		apart, denied, nobodys = 0, 0, 0
	}
	long := "@" + strings.Repeat("n", 106)
	for _, name := range []string{"@s", "@secret", "@/with/slashes", long} {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
			server := unixSocket(a, kind)
			expect(t, "bind "+name, server.do(Call{Name: "bind", FD: server.fd, Addr: name}).Err, 0)
			if kind != unix.SOCK_DGRAM {
				server.must(Call{Name: "listen", FD: server.fd})
			}
			for _, c := range []struct {
				what string
				box  *box
				err  unix.Errno
			}{{"own", a, 0}, {"own cgroup below", child, 0}, {"neighbour", b, apart}, {"helper", helper, 0}, {"nobody's", stranger, nobodys}} {
				expect(t, c.what+" connects to "+name, unixSocket(c.box, kind).connect(name), c.err)
				if kind == unix.SOCK_DGRAM {
					expect(t, c.what+" sends to "+name, unixSocket(c.box, kind).send(name, c.what), c.err)
				}
			}
			if kind != unix.SOCK_DGRAM {
				other := unixSocket(a, unix.SOCK_STREAM+unix.SOCK_SEQPACKET-kind)
				expect(t, "another type", other.connect(name), unix.ECONNREFUSED)
			}
			// A name cannot be reached, but it can be taken: documented.
			taken := unixSocket(b, kind)
			expect(t, "bind a neighbour's name", taken.do(Call{Name: "bind", FD: taken.fd, Addr: name}).Err, unix.EADDRINUSE)
			server.close()
		}
	}
	n, err := h.Counters(b.id)
	if err != nil || n.UnixDenied != denied {
		t.Errorf("counters %+v, %v; want %d denied", n, err, denied)
	}
	// Two helpers of the plugin's, one name each.
	s := unixSocket(helper, unix.SOCK_STREAM)
	s.must(Call{Name: "bind", FD: s.fd, Addr: "@helper"})
	s.must(Call{Name: "listen", FD: s.fd})
	expect(t, "a helper's socket", unixSocket(a, unix.SOCK_STREAM).connect("@helper"), 0)
	expect(t, "nobody's name", unixSocket(a, unix.SOCK_STREAM).connect("@nobody"), unix.ECONNREFUSED)
}

func unixSocket(b *box, kind int) sock { b.t.Helper(); return b.socket(unix.AF_UNIX, kind) }

// Files are shared by volumes, and by that alone.
func TestPathSockets(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, b := h.box(network, 1, v4), h.box(network, 2, v4)
	path := filepath.Join(netnstest.RunDir(t), "socket")
	s := unixSocket(a, unix.SOCK_STREAM)
	s.must(Call{Name: "bind", FD: s.fd, Addr: path})
	s.must(Call{Name: "listen", FD: s.fd})
	expect(t, "a file", unixSocket(b, unix.SOCK_STREAM).connect(path), 0)
}

// Many sockets of one name's bucket do not hide the one that is asked for, and
// names of an unprotected namespace are free.
func TestAbstractSocketsElsewhere(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.box(h.network(1, v4), 1, v4)
	plain := tenant(t, v4)
	h.cgroup(h.top + "/x")
	h.cgroup(h.top + "/y")
	x, y := h.start(h.top+"/x", plain), h.start(h.top+"/y", plain)
	s := unixSocket(x, unix.SOCK_STREAM)
	s.must(Call{Name: "bind", FD: s.fd, Addr: "@shared"})
	s.must(Call{Name: "listen", FD: s.fd})
	expect(t, "in a plain namespace", unixSocket(y, unix.SOCK_STREAM).connect("@shared"), 0)
}
