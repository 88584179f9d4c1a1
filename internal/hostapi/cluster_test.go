package hostapi_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/hostapi"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// A script has the host leave or join and creates a network next, which is to be this
// host's alone or the cluster's by then.
func TestCommandIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		m, err := membership.Open(membership.Options{StateDir: t.TempDir(), Name: "h", Port: 7790, Log: logrus.NewEntry(log)})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		followed := make(chan struct{})
		go func() {
			conn := <-m.Connections() // that it is in none
			time.Sleep(50 * time.Millisecond)
			m.Use(conn, func() {
				time.Sleep(50 * time.Millisecond)
				close(followed)
			})
		}()
		api := hostapi.API{Cluster: &hostapi.Cluster{Membership: m}}
		reply, err := api.Handle(t.Context(), runtimeapi.Request{Cluster: &runtimeapi.Cluster{Leave: &runtimeapi.ClusterLeave{}}})
		if err != nil || !reply.Cluster.Left.Already {
			t.Fatalf("got %+v, %v", reply, err)
		}
		select {
		case <-followed:
		default:
			t.Error("it was answered while the host was not yet what the command has made it")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		m.Followed(ctx) // nothing is left to follow
	})
}
