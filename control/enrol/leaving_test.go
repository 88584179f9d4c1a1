package enrol

import (
	"context"
	"errors"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// between is a store in which something happens after a question about a key.
type between struct {
	clientv3.KV
	key    string
	happen func()
}

func (b *between) Get(ctx context.Context, key string, o ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	got, err := b.KV.Get(ctx, key, o...)
	if happen := b.happen; strings.HasPrefix(key, b.key) && happen != nil {
		b.happen = nil
		happen()
	}
	return got, err
}

// A host asks who serves the store, as each does every minute, while it is taken out, by
// itself or by another. It is not entered anew by that, whatever was looked up before.
func TestAsksWhileItIsTakenOut(t *testing.T) {
	for _, key := range []string{hostPrefix, revokedPrefix} {
		d := newDesk(t)
		a, err := d.join()
		if err != nil {
			t.Fatal(err)
		}
		d.register.kv.KV = &between{KV: d.register.kv.KV, key: key, happen: func() {
			if err := d.register.Remove(t.Context(), member, false); err != nil {
				t.Error(err)
			}
		}}
		hello := said
		hello.Version = "another" // worth an entry
		_, _ = d.answer(pathState, memberRequest{Hello: hello}, mustParse(t, a.Certificate))
		if h, err := d.register.Host(t.Context(), member); !errors.Is(err, ErrNotEnrolled) {
			t.Errorf("it is taken out after %s was looked up, and is %+v, %v", key, h, err)
		}
	}
}
