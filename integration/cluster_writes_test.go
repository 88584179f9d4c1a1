package integration

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/lab"
)

// TestBurstWrites starts and ends many containers on three hosts at once. None of them
// costs the store a write: each block that a host claims does, and nothing else.
func TestBurstWrites(t *testing.T) {
	firstEngine(t, func(t *testing.T, engine string) {
		first := newTestBed(t, lab.Options{Engine: engine, Hosts: 3})
		if err := first.cluster(t.Context()); err != nil {
			t.Fatal(err)
		}
		log, err := ownStore{first}.ctl().logWrites(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range []burstOf{
			{network: "wide", bits: 24, containers: 5},
			{network: "wide", bits: 24, containers: number(25, 100)},
			{network: "narrow", bits: 28, containers: number(20, 40), claims: 3}, // fifteen addresses to a block
		} {
			if err := b.costs(t, first, log); err != nil {
				t.Errorf("%+v: %v", b, err)
			}
		}
	})
}

// burstOf is so many containers on each host at once.
type burstOf struct {
	network    string
	bits       int // of the network's blocks
	containers int
	claims     int64 // of blocks, at least; 0: none
}

// costs says whether the burst costs the store what it may.
func (o burstOf) costs(t *testing.T, first *bed, log *writeLog) error {
	t.Helper()
	ctx := t.Context()
	if _, err := first.network(ctx, o.network); err != nil { // the first burst on it
		if err := first.shares(ctx, o.network, "--subnet", "10.77.0.0/16", "-o", fmt.Sprintf("particle.block=%d", o.bits)); err != nil {
			return err
		}
	}
	had, err := first.blocks(ctx, o.network)
	if err != nil {
		return err
	}
	before, err := log.written(ctx)
	if err != nil {
		return err
	}
	if err := first.each(func(b *bed) error { return b.burst(ctx, o.containers, o.network) }); err != nil {
		return err
	}
	claimed, err := o.paid(ctx, first, log, had, len(before))
	if err != nil || claimed < o.claims || o.claims == 0 && claimed != 0 {
		return errors.Join(err, fmt.Errorf("%d blocks claimed", claimed))
	}
	t.Logf("%+v: %d blocks claimed, a write each", o, claimed)
	if err := first.each(func(b *bed) error { return b.clear(ctx) }); err != nil {
		return err
	}
	_, err = o.paid(ctx, first, log, had, len(before))
	return err
}

// paid waits until there was one write for each block that was claimed. One may be being
// claimed.
func (o burstOf) paid(ctx context.Context, first *bed, log *writeLog, had int64, before int) (claimed int64, err error) {
	err = until(ctx, func() error {
		has, err := first.blocks(ctx, o.network)
		keys, err2 := log.written(ctx)
		claimed = has - had
		if err = errors.Join(err, err2); err == nil && claimed != int64(len(keys)-before) {
			err = fmt.Errorf("%d blocks claimed, and these were written: %v", claimed, keys[before:])
		}
		return err
	})
	return claimed, err
}

// blocks counts those that all hosts have of a network.
func (b *bed) blocks(ctx context.Context, network string) (all int64, err error) {
	for _, b := range b.all() {
		n, err := b.network(ctx, network)
		if err != nil {
			return 0, err
		}
		for _, pool := range n.Pools {
			all += int64(len(pool.Blocks))
		}
	}
	return all, nil
}

// writeLog is what a store was told to keep and to forget, since logWrites.
type writeLog struct {
	ctl   etcdctl
	marks int
}

const (
	writesService = "writes"
	mark          = "elsewhere" // a key of no use to hosts
)

// logWrites begins to write that down.
func (c etcdctl) logWrites(ctx context.Context) (*writeLog, error) {
	l := &writeLog{ctl: c}
	argv := append([]string{"/usr/bin/env"}, c.environ()...)
	if err := c.node.StartService(ctx, writesService, append(argv, "etcdctl", "watch", "--prefix", "", "--write-out", "json")...); err != nil {
		return nil, err
	}
	return l, until(ctx, func() error { // it has begun when it hears of a mark
		err := l.mark(ctx)
		if _, last, err2 := l.read(); err == nil && last == "" {
			err = cmp.Or(err2, errors.New("the watch of the store has not begun"))
		}
		return err
	})
}

// mark writes what ends the writes so far.
func (l *writeLog) mark(ctx context.Context) error {
	l.marks++
	_, err := l.ctl.run(ctx, "put", mark, fmt.Sprint(l.marks))
	return err
}

// written are the keys of all writes but those of hosts themselves: a host that stood
// still for long writes again that it is alive.
func (l *writeLog) written(ctx context.Context) (keys []string, err error) {
	if err := l.mark(ctx); err != nil {
		return nil, err
	}
	err = until(ctx, func() (err error) {
		var last string
		if keys, last, err = l.read(); err == nil && last != fmt.Sprint(l.marks) {
			err = fmt.Errorf("the watch of the store has heard of mark %s of %d", last, l.marks)
		}
		return err
	})
	return keys, err
}

// read tells the keys that the log has, and the last mark.
func (l *writeLog) read() (keys []string, last string, err error) {
	file, err := os.Open(l.ctl.node.ServiceLog(writesService))
	if err != nil {
		return nil, "", err
	}
	defer file.Close()
	for said := json.NewDecoder(file); ; {
		var heard struct {
			Events []struct {
				KV struct{ Key, Value []byte }
			}
		}
		switch err := said.Decode(&heard); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // or half a line
			return keys, last, nil
		case err != nil:
			return nil, "", err
		}
		for _, e := range heard.Events {
			switch key := string(e.KV.Key); {
			case key == mark:
				last = string(e.KV.Value)
			case !strings.HasPrefix(key, "/particle/v1/nodes/"):
				keys = append(keys, key)
			}
		}
	}
}
