package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
)

func TestMain(m *testing.M) {
	lab.MaybeInit()
	os.Exit(m.Run())
}

// Every way carries every load. How much is for the program to say.
func TestEveryWayCarriesEveryLoad(t *testing.T) {
	netnstest.Require(t, os.Geteuid() == 0, "root, to boot Docker hosts")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	o, err := parseFlags([]string{"-rounds", "1", "-seconds", "0.02", "-lab", fmt.Sprint("t-overlay-", os.Getpid())}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBed(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.close(ctx); err != nil {
			t.Error(err)
		}
		if left, err := lab.Leaks(o.lab); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	r := newReport(o)
	if err := r.fill(ctx, b, o); err != nil {
		t.Error(err)
	}
	if want := len(b.ways) * 5; len(r.Cells) < want {
		t.Errorf("%d cells, want %d at least", len(r.Cells), want)
	}
	checkGuard(t, b)
}

// The address guard looks at sockets that are a container's of particle's, and at no others.
func checkGuard(t *testing.T, b *bed) {
	for _, w := range b.ways {
		guarded := w.as[0] != ""
		if guarded != (w.name == ownWay) {
			t.Errorf("%s: sockets are made in cgroup %q", w.name, w.as[0])
		}
		if !guarded {
			continue
		}
		w.addrs[0] = w.addrs[0].Next()
		for _, as := range []cgroup{w.as[0], ""} {
			w.as[0] = as
			fd, err := udp(w, 0, netip.AddrPort{})
			if err == nil {
				_ = unix.Close(fd)
			}
			if errors.Is(err, unix.EADDRNOTAVAIL) != (as != "") {
				t.Errorf("%s, in cgroup %q: bind to another's address: %v", w.name, as, err)
			}
		}
	}
}
