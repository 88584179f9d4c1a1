package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/particle-net/particle/internal/store"
)

type record struct{ N int }

func open(t *testing.T, path string, d store.Durability) (*store.DB, *store.Table[record]) {
	t.Helper()
	db, err := store.Open(path, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	table, err := store.NewTable[record](db, "records")
	if err != nil {
		t.Fatal(err)
	}
	return db, table
}

func TestRecordsOutliveTheProcess(t *testing.T) {
	for _, d := range []store.Durability{store.Volatile, store.Durable} {
		path := filepath.Join(t.TempDir(), "deep", "er", "x.db")
		db, table := open(t, path, d)
		for i := range 5 {
			if err := table.Put(strconv.Itoa(i), record{i}); err != nil {
				t.Fatal(err)
			}
		}
		if err := table.Delete("3"); err != nil {
			t.Fatal(err)
		}
		if err := table.Delete("absent"); err != nil {
			t.Fatalf("deleting what is not there: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		_, again := open(t, path, d)
		got, err := again.All()
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]record{"0": {0}, "1": {1}, "2": {2}, "4": {4}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestTwoPluginsCannotShareAStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	open(t, path, store.Volatile)
	_, err := store.Open(path, store.Volatile)
	if !errors.Is(err, berrors.ErrTimeout) || !strings.Contains(err.Error(), "disable it first") {
		t.Fatalf("got %v", err)
	}
}

func TestDamagedFileIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("garbage", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(path, store.Volatile)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move it away") {
		t.Fatalf("got %v", err)
	}
}

// A process killed between writes loses none that it was told of, although the
// volatile store never flushes.
func TestKillLosesNothing(t *testing.T) {
	if path := os.Getenv("STORE_TEST_WRITER"); path != "" {
		_, table := open(t, path, store.Volatile)
		for i := 0; ; i++ {
			if err := table.Put(strconv.Itoa(i), record{i}); err != nil {
				t.Fatal(err)
			}
			fmt.Printf("wrote %d\n", i)
		}
	}
	path := filepath.Join(t.TempDir(), "x.db")
	writer := exec.Command(os.Args[0], "-test.run=^TestKillLosesNothing$")
	writer.Env = append(os.Environ(), "STORE_TEST_WRITER="+path)
	out, err := writer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	last := -1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "wrote "); ok {
			if last, err = strconv.Atoi(n); err != nil {
				t.Fatal(err)
			}
		}
		if last == 500 {
			if err := writer.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := writer.Wait(); err == nil {
		t.Fatal("the writer was not killed")
	}
	_, table := open(t, path, store.Volatile)
	got, err := table.All()
	if err != nil {
		t.Fatal(err)
	}
	for i := range last + 1 {
		if got[strconv.Itoa(i)].N != i {
			t.Fatalf("record %d of %d is lost", i, last)
		}
	}
}
