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
	var problem error
	// A leader that was elected meanwhile counts on nothing of the third, and sends it what it
	// lacks: on a slow machine that happens, and shows nothing.
	for tries := 1; problem == nil; tries++ {
		if tries > 5 {
			t.Fatal("the third was brought up to date each time, and never told that it is set back")
		}
		if err := errors.Join(h3.Close(), os.RemoveAll(saved), os.CopyFS(saved, os.DirFS(h3.opts.StateDir))); err != nil {
			t.Fatal(err)
		}
		h3.start()
		for range 20 {
			write()
		}
		eventually(t, "the third to follow", func() bool {
			differ, leads := behind()
			if leads { // the next leader would find out what it has
				h3.restart()
			}
			return !differ && !leads
		})
		if err := errors.Join(h3.Close(), os.RemoveAll(h3.opts.StateDir), os.CopyFS(h3.opts.StateDir, os.DirFS(saved))); err != nil {
			t.Fatal(err)
		}
		h3.start()
		eventually(t, "word of it, or what it lacks", func() bool {
			if problem = h3.Status(t.Context()).Problem; problem != nil && strings.Contains(problem.Error(), "older than what it has confirmed") {
				return true
			}
			problem = nil
			differ, _ := behind()
			return !differ
		})
	}
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
