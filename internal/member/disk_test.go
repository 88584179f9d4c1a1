package member_test

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"sync"
)

// disk is a table whose records are text, as on a disk.
type disk[T any] struct {
	mu   sync.Mutex
	text map[string][]byte
	lost bool // nothing reaches it
	full bool // and it says so
	puts int  // asked for so far
}

var errFull = errors.New("no space left on device")

func newDisk[T any]() *disk[T] { return &disk[T]{text: map[string][]byte{}} }

// lose lets no more reach the disk, or lets it again.
func (d *disk[T]) lose(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lost = on
}

// fail has the disk refuse what is put on it, or take it again.
func (d *disk[T]) fail(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = on
}

func (d *disk[T]) Put(key string, k T) error {
	text, err := json.Marshal(k)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.puts++
	if d.full {
		return errFull
	}
	if !d.lost {
		d.text[key] = text
	}
	return err
}

func (d *disk[T]) Delete(key string) error { return d.DeletePrefix(key) }

func (d *disk[T]) DeletePrefix(prefix string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost {
		return nil
	}
	maps.DeleteFunc(d.text, func(k string, _ []byte) bool { return strings.HasPrefix(k, prefix) })
	return nil
}

func (d *disk[T]) All() (map[string]T, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[string]T{}
	for key, text := range d.text {
		var k T
		if err := json.Unmarshal(text, &k); err != nil {
			return nil, err
		}
		all[key] = k
	}
	return all, nil
}
