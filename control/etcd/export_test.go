package etcd

import (
	"testing"
	"time"
)

// Opened is a store until the test ends. On a busy machine a hundred of them wait long
// for each other.
func Opened(t testing.TB, o Options) *Store {
	t.Helper()
	o.Patience = time.Minute
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// SignOut is what the keeper does when a user's question had no answer.
func (s *Store) SignOut() { s.signOut() }
