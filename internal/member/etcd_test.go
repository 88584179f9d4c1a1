package member_test

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
	"github.com/particle-net/particle/internal/member"
)

func TestMain(m *testing.M) { etcdtest.Main(m) }

// eventually asks until the answer is yes. Time is real where etcd is.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// The same with a real store: a network is made, outlives the loss of the store,
// is given back to an empty one, and goes.
func TestWithEtcd(t *testing.T) {
	server := etcdtest.Start(t, etcdtest.Current)
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	if testing.Verbose() {
		logger.SetOutput(t.Output())
	}
	w := &world{t: t, log: logrus.NewEntry(logger)}
	var hosts []*host
	for i := range 2 {
		h := w.host(i)
		h.start()
		t.Cleanup(h.kill)
		s, err := etcd.Open(context.Background(), etcd.Options{Endpoints: []string{server.Endpoint()}, Node: h.node, LeaseTTL: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		h.member.Connect(s)
		hosts = append(hosts, h)
	}
	a, b := hosts[0], hosts[1]
	healthy := func() bool { return a.member.Status().Store.Healthy && b.member.Status().Store.Healthy }
	eventually(t, "the store answers", healthy)
	if err := a.create(jobs("10.9.0.0/16")); err != nil {
		t.Fatal(err)
	}
	joined := func() bool {
		if slices.ContainsFunc(hosts, func(h *host) bool { return h.find("jobs") == nil || h.phase("jobs") != member.Ready }) {
			return false
		}
		mine, its, _ := strings.Cut(a.view("jobs"), " | 2:") // what a has, and what it knows of b
		return its != "" && b.view("jobs") == its+" | 1:"+mine
	}
	eventually(t, "both hosts have the network", joined)
	before := a.view("jobs")

	server.Kill()
	eventually(t, "the loss is noticed", func() bool { return !a.member.Status().Store.Healthy && !b.member.Status().Store.Healthy })
	if !joined() || a.view("jobs") != before {
		t.Errorf("without a store: %q, %q", a.view("jobs"), b.view("jobs"))
	}
	server.Wipe()
	eventually(t, "all is given back", func() bool {
		s := a.member.Status()
		return healthy() && joined() && a.view("jobs") == before && s.Networks[0].Doubted == 0 && len(s.Networks[0].Claims) == 1
	})
	b.remove("jobs")
	eventually(t, "the network is gone", func() bool { return a.find("jobs") == nil && len(a.member.Status().Networks) == 0 })
}
