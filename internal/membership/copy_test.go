package membership_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/internal/membership"
)

// A copy of a member's disk that was given an id of its own does not pass for the member,
// which stays what it is when the copy leaves. The copy joins as the host that it is.
func TestCopyOfMember(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	made := h1.init()
	h2.join(made, false)
	h2.endpoints(1)
	former := h2.Node()
	duplicate := newHost(t, "h3", "127.0.0.3", port)
	if err := errors.Join(duplicate.Close(), os.RemoveAll(duplicate.opts.StateDir), os.CopyFS(duplicate.opts.StateDir, os.DirFS(h2.opts.StateDir))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(duplicate.opts.StateDir, "node")); err != nil {
		t.Fatal(err)
	}
	duplicate.start()
	select {
	case c := <-duplicate.Connections():
		t.Errorf("a connection with the certificate of another host: %+v", c)
	default:
	}
	refused(t, duplicate.Status(t.Context()).Problem, former.Short(), duplicate.Node().Short(), "particle cluster leave --force")
	if _, err := duplicate.Leave(t.Context(), membership.LeaveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	duplicate.join(made, false)
	h2.restart() // it would look once a minute
	eventually(t, "the member as before", func() bool {
		s := h2.Status(t.Context())
		return s.Problem == nil && len(s.Hosts) == 3
	})
}

// A copy of a member's disk leaves nothing as that member, whatever it is told: the
// certificate is the other's as well.
func TestCopyDoesNotLeaveForMember(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h2.join(h1.init(), false)
	duplicate := newHost(t, "h3", "127.0.0.3", port)
	if err := errors.Join(duplicate.Close(), os.RemoveAll(duplicate.opts.StateDir), os.CopyFS(duplicate.opts.StateDir, os.DirFS(h2.opts.StateDir))); err != nil {
		t.Fatal(err)
	}
	duplicate.opts.Leaving = func(context.Context) error {
		return fmt.Errorf("a host h2 is there already, and %w", control.ErrDouble)
	}
	duplicate.start()
	_, err := duplicate.Leave(t.Context(), membership.LeaveOptions{Force: true})
	refused(t, err, "a host h2 is there already")
	if s := h1.Status(t.Context()); len(s.Hosts) != 2 {
		t.Errorf("hosts: %+v", s.Hosts)
	}
}
