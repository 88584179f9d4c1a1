package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/particle-net/particle/internal/fault"
)

// Durability says when a write has to be safe.
type Durability int

// A write survives a kill of the process (Volatile), or a power cut (Durable).
const (
	Volatile Durability = iota
	Durable
)

// DB is one open file. It is safe for concurrent use.
type DB struct {
	bolt *bbolt.DB
	path string
}

// Open opens or makes the file and its folder. It fails when another process
// holds the file for longer than three seconds.
func Open(path string, d Durability) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, &fault.Error{Op: "open store", On: path, Err: err, Fix: "check that the folder can be written"}
	}
	options := &bbolt.Options{
		Timeout:      3 * time.Second,
		NoSync:       d == Volatile,
		FreelistType: bbolt.FreelistMapType,
		// The freelist is rebuilt at opening; writing it at each commit would
		// make a commit grow with the number of records.
		NoFreelistSync: true,
	}
	bolt, err := bbolt.Open(path, 0o600, options)
	if err != nil {
		return nil, &fault.Error{Op: "open store", On: path, Err: err, Fix: remedy(err)}
	}
	return &DB{bolt: bolt, path: path}, nil
}

// Close flushes and closes the file.
func (db *DB) Close() error { return db.bolt.Close() }

func remedy(err error) string {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return "another particle plugin is running on this host; disable it first"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room on the disk and repeat"
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return "the file is damaged; move it away, enable the plugin and create the networks anew"
	}
	return "check the disk and the rights on the file"
}

// Table is the records of one kind in a DB, each a JSON value under a key.
type Table[T any] struct {
	db     *DB
	bucket []byte
}

// NewTable opens or makes the table of the given name.
func NewTable[T any](db *DB, name string) (*Table[T], error) {
	t := &Table[T]{db: db, bucket: []byte(name)}
	err := db.bolt.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(t.bucket)
		return err
	})
	if err != nil {
		return nil, t.fail("open table in", name, err)
	}
	return t, nil
}

// Put writes the record; it is safe when Put returns.
func (t *Table[T]) Put(key string, v T) error {
	data, err := json.Marshal(v)
	if err != nil {
		return t.fail("write to", key, err)
	}
	err = t.db.bolt.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(t.bucket).Put([]byte(key), data)
	})
	if err != nil {
		return t.fail("write to", key, err)
	}
	return nil
}

// Delete removes the record; one that is not there is no error.
func (t *Table[T]) Delete(key string) error {
	err := t.db.bolt.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(t.bucket).Delete([]byte(key))
	})
	if err != nil {
		return t.fail("delete from", key, err)
	}
	return nil
}

// DeletePrefix removes all records whose key starts with prefix, in one write.
func (t *Table[T]) DeletePrefix(prefix string) error {
	err := t.db.bolt.Update(func(tx *bbolt.Tx) error {
		c := tx.Bucket(t.bucket).Cursor()
		// A delete moves the cursor on to the next key, so seek anew each time.
		for k, _ := c.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)); k, _ = c.Seek([]byte(prefix)) {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return t.fail("delete from", prefix+"*", err)
	}
	return nil
}

// All reads every record.
func (t *Table[T]) All() (map[string]T, error) {
	all := map[string]T{}
	err := t.db.bolt.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(t.bucket).ForEach(func(k, data []byte) error {
			var v T
			if err := json.Unmarshal(data, &v); err != nil {
				return fmt.Errorf("record %s: %w", k, err)
			}
			all[string(k)] = v
			return nil
		})
	})
	if err != nil {
		return nil, t.fail("read", string(t.bucket), err)
	}
	return all, nil
}

func (t *Table[T]) fail(op, on string, err error) error {
	return &fault.Error{Op: op + " store", On: t.db.path, Err: fmt.Errorf("%s: %w", on, err), Fix: remedy(err)}
}
