package overlay_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
)

func TestExposeAndConceal(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	m.apply(segment(1, 1, "192.0.2.1", "10.9.0.0/24"), true)
	m.apply(segment(2, 2, "192.0.2.1", "10.9.0.0/24"), true)
	key := filepath.Join(netnstest.RunDir(t), "not", "yet", "there", "0123456789ab")
	expose := func(n int) {
		t.Helper()
		if err := m.Expose(network(n), key); err != nil {
			t.Fatal(err)
		}
		for _, other := range []int{1, 2} {
			same, err := m.SameNamespace(network(other), key)
			if err != nil || same != (other == n) {
				t.Errorf("network %d exposed: SameNamespace(%d) = %v, %v", n, other, same, err)
			}
		}
	}
	expose(1)
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, filepath.Dir(key), unix.IN_CREATE|unix.IN_DELETE); err != nil {
		t.Fatal(err)
	}
	expose(1) // again: it stays, and is never gone
	if n, err := unix.Read(watch, make([]byte, 512)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the key was made anew: %d bytes of events, %v", n, err)
	}
	if mounts := mountsBelow(t, key); len(mounts) != 1 {
		t.Errorf("mounts on the key: %v", mounts)
	}
	expose(2) // another network replaces it
	if mounts := mountsBelow(t, key); len(mounts) != 1 {
		t.Errorf("mounts on the key: %v", mounts)
	}
	for range 2 { // gone is success
		if err := m.Conceal(key); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key is still there: %v", err)
	}
	m.apply(segment(2, 2, "192.0.2.1", "10.9.0.0/24"), false)
}

func TestExposeReplacesAnEmptyFile(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	m.apply(segment(1, 1, "192.0.2.1", "10.9.0.0/24"), true)
	key := filepath.Join(netnstest.RunDir(t), "0123456789ab")
	if err := os.WriteFile(key, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.Expose(network(1), key); err != nil {
		t.Fatal(err)
	}
	if same, err := m.SameNamespace(network(1), key); err != nil || !same {
		t.Errorf("SameNamespace = %v, %v", same, err)
	}
	if err := m.Conceal(key); err != nil {
		t.Fatal(err)
	}
}

func TestSandboxOfAMissingNetwork(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	key := filepath.Join(netnstest.RunDir(t), "0123456789ab")
	if err := m.Expose(network(1), key); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("Expose: %v", err)
	}
	if _, err := m.SameNamespace(network(1), "/proc/self/ns/net"); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("SameNamespace: %v", err)
	}
	// A file without a namespace on it is what a reboot leaves on a disk.
	if err := os.WriteFile(filepath.Join(m.opts.NamespaceDir, string(network(1))), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.Expose(network(1), key); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("Expose: %v", err)
	}
	if ids, err := m.Networks(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("Networks() = %v, %v", ids, err)
	}
	m.apply(segment(1, 1, "", "10.9.0.0/24"), true)
	if same, err := m.SameNamespace(network(1), netnstest.New(t).Path()); err != nil || same {
		t.Errorf("SameNamespace(another) = %v, %v", same, err)
	}
}

func BenchmarkExposeConceal(b *testing.B) {
	m := newMachine(b, "")
	m.apply(segment(1, 1, "", "10.9.0.0/24"), true)
	key := filepath.Join(netnstest.RunDir(b), "0123456789ab")
	for b.Loop() {
		if err := m.Expose(network(1), key); err != nil {
			b.Fatal(err)
		}
		if err := m.Conceal(key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyRemove(b *testing.B) {
	for name, ready := range map[string]int{"new": 0, "ready": 1} {
		b.Run(name, func(b *testing.B) {
			m := newMachine(b, "192.0.2.1/24", func(o *overlay.Options) { o.Ready = ready })
			seg := segment(1, 1, "192.0.2.1", "10.9.0.0/24", "fd00:9::/64")
			for b.Loop() {
				m.apply(seg, true)
				b.StopTimer()
				if err := m.Remove(b.Context(), seg.Network); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkApplyUnchanged(b *testing.B) {
	m := newMachine(b, "192.0.2.1/24")
	seg := segment(1, 1, "192.0.2.1", "10.9.0.0/24", "fd00:9::/64")
	m.apply(seg, true)
	for b.Loop() {
		m.apply(seg, false)
	}
}

func TestWithin(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	m.apply(segment(1, 1, "192.0.2.1", "10.9.0.0/24"), true)
	inode := func(path string) (ino uint64) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Error(err)
		}
		return st.Ino
	}
	var inside uint64
	failure := errors.New("its own")
	err := m.Within(network(1), func() error {
		inside = inode("/proc/thread-self/ns/net")
		return failure
	})
	if want := inode(filepath.Join(m.opts.NamespaceDir, string(network(1)))); inside != want || err != failure { //nolint:errorlint // as it is
		t.Errorf("ran in namespace %d, want %d; error %v", inside, want, err)
	}
	if err := m.Within(network(2), func() error { t.Error("ran"); return nil }); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("an unknown network: %v", err)
	}
}
