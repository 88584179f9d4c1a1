package membership_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/membership"
)

// A server whose disk was restored from a copy lacks what it has confirmed to the others.
// It says so, is a member as before, and becomes a server again when it is told to join.
func TestServerIsSetBack(t *testing.T) {
	h1, _, h3, _ := threeServers(t)
	h1.restart() // it would look once a minute
	h1.endpoints(3)
	write := func() {
		t.Helper()
		eventually(t, "a write", func() bool {
			_, err := h1.Token(t.Context(), membership.TokenOptions{Rotate: true})
			return err == nil
		})
	}
	third := fmt.Sprintf("https://127.0.0.3:%d", h3.opts.Port+1)
	behind := func() (differ, leads bool) {
		var least, most int64
		for i, e := range h1.Status(t.Context()).Store {
			if i == 0 {
				least = e.Revision
			}
			least, most = min(least, e.Revision), max(most, e.Revision)
			leads = leads || e.Leader && e.Endpoint == third
		}
		return least < most, leads
	}
	eventually(t, "three alike", func() bool { differ, _ := behind(); return !differ && h3.Status(t.Context()).Problem == nil })
	saved := filepath.Join(t.TempDir(), "saved")
	if err := errors.Join(h3.Close(), os.CopyFS(saved, os.DirFS(h3.opts.StateDir))); err != nil {
		t.Fatal(err)
	}
	h3.start()
	for range 20 {
		write()
	}
	// If it led, the next leader would find out what it has, and send it the rest.
	eventually(t, "the third to follow", func() bool { differ, leads := behind(); return !differ && !leads })
	if err := errors.Join(h3.Close(), os.RemoveAll(h3.opts.StateDir), os.Rename(saved, h3.opts.StateDir)); err != nil {
		t.Fatal(err)
	}
	h3.start()
	var problem error
	eventually(t, "word of it", func() bool {
		problem = h3.Status(t.Context()).Problem
		return problem != nil && strings.Contains(problem.Error(), "older than what it has confirmed")
	})
	refused(t, problem, "particle cluster join --server")
	if err := works(t, h3.endpoints(3)); err != nil {
		t.Errorf("it does not reach the others' store: %v", err)
	}
	made, err := h1.Token(t.Context(), membership.TokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h3.join(made, true)
	eventually(t, "three servers again", func() bool { differ, _ := behind(); return !differ && h3.Status(t.Context()).Problem == nil })
	write()
}
