package server_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/topology"
)

// withDisk says that the test runs where it may mount one.
const withDisk = "PARTICLE_TEST_WITH_DISK"

// diskSize holds the two files of 64 MB that etcd keeps for its log, and some.
const diskSize = "size=192m"

// A full disk is told as such; when there is room again the store goes on by
// itself, with all that it has ever confirmed.
func TestFullDisk(t *testing.T) {
	if os.Getenv(withDisk) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), withDisk+"=yes")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	w := newWorld(t)
	if err := os.Mkdir(w.config.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("disk", w.config.Dir, "tmpfs", 0, diskSize); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(w.config.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := w.start(t)
	ready(t, s)
	register := w.dial(t, w.tls).Register()
	enter(t, register, 0)
	fill(t, filepath.Join(w.config.Dir, "ballast"))

	confirmed := 1
	eventually(t, "word of the full disk", func() bool {
		if enterWithin(register, confirmed, time.Second) == nil {
			confirmed++
		}
		return strings.Contains(s.State().Problem, "the disk is full")
	})
	if p := s.State().Problem; !strings.Contains(p, "make room") {
		t.Error(p)
	}
	if err := os.Remove(filepath.Join(w.config.Dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store again", func() bool { return s.State().Ready && enterWithin(register, 9999, 5*time.Second) == nil })
	hosts, err := register.Hosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	have := map[topology.NodeID]bool{}
	for _, h := range hosts {
		have[h.ID] = true
	}
	for i := range confirmed {
		if !have[hostID(i)] {
			t.Errorf("host %d of %d was confirmed and is lost", i, confirmed)
		}
	}
	t.Logf("%d entries were confirmed, %d starts", confirmed, s.State().Starts)
}

func hostID(i int) topology.NodeID { return topology.NodeID(fmt.Sprintf("%032x", i)) }

func enter(t *testing.T, r *enrol.Register, i int) {
	t.Helper()
	if err := enterWithin(r, i, 20*time.Second); err != nil {
		t.Fatal(err)
	}
}

// enterWithin writes an entry that takes some room, if an attempt whose answer was lost has
// not.
func enterWithin(r *enrol.Register, i int, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := r.Enter(ctx, enrol.Host{ID: hostID(i), Name: strings.Repeat("x", 100_000)})
	if errors.Is(err, enrol.ErrChanged) {
		return nil
	}
	return err
}

// fill writes a file until there is no room for more.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<16); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}
