package etcd_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// A host that does not come back loses its claims, whoever is there to see it; one
// that lives does not.
func TestHostThatStaysAwayIsRemoved(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Current)
	watcher := func(i int, lease time.Duration) *etcd.Store {
		return etcd.Opened(t, etcd.Options{
			Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(i), LeaseTTL: lease, Abandon: 2 * time.Second,
		})
	}
	n := controltest.Network(1)
	// One is looked for every third of a lease, and must renew its own in time.
	gone, stays := watcher(1, time.Second), watcher(2, 30*time.Second)
	watcher(3, time.Second)
	if _, err := gone.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*etcd.Store{gone, stays} {
		if _, err := s.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil {
			t.Fatal(err)
		}
	}
	routes := controltest.Follow(t, stays.WatchRoutes(t.Context(), n), controltest.Key)
	routes.UntilHave(2)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	routes.UntilHave(1)
	for k := range routes.Have {
		if k.Node != controltest.Node(2).ID {
			t.Errorf("the claim of a living host has gone; left: %v", k)
		}
	}
}

// said is a log hook that hears of hosts that could not be looked after.
type said chan struct{}

func (said) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel} }

func (s said) Fire(e *logrus.Entry) error {
	if strings.Contains(e.Message, "were looked after") {
		select {
		case s <- struct{}{}:
		default:
		}
	}
	return nil
}

// That a host which is away cannot be looked after says nothing about the store: it is
// logged, watches go on, and other hosts are looked after.
func TestHostThatCannotBeLookedAfter(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	client := srv.Client()
	for key, value := range map[string]string{"damaged/lost": "no JSON", "gone/info": "{}"} {
		if _, err := client.Put(t.Context(), "/particle/v1/nodes/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	log, hook := logrus.New(), make(said)
	log.SetOutput(io.Discard)
	log.AddHook(hook)
	s := etcd.Opened(t, etcd.Options{
		Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1), LeaseTTL: time.Second, Abandon: time.Second, Log: logrus.NewEntry(log),
	})
	networks := controltest.Follow(t, s.WatchNetworks(t.Context()), func(n control.Network) string { return n.Creator.Short() })
	networks.UntilHave(0)
	for range 3 {
		select {
		case <-hook:
		case <-time.After(time.Minute):
			t.Fatal("nobody says that a host could not be looked after")
		}
	}
	if _, err := s.ClaimNetwork(t.Context(), controltest.Network(1)); err != nil {
		t.Fatal(err)
	}
	networks.UntilHave(1)
	until(t, func() error {
		got, err := client.Get(t.Context(), "/particle/v1/nodes/gone/info")
		if err == nil && len(got.Kvs) > 0 {
			err = errors.New("the host that has gone is still there")
		}
		return err
	})
}
