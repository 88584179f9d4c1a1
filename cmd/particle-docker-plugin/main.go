// Command particle-docker-plugin is the managed Docker plugin: it opens the
// data plane and the stores, answers Docker's network and IPAM calls on two
// sockets and particle-runtime's on a third, and drains at SIGTERM. What it
// built in the kernel outlives it. Executed by itself with an argument, it is the
// store of a cluster; see package control/server.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/hostview"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == server.Argument {
		server.Run()
	}
	// The heap is small and mostly garbage of single calls. Collecting it less
	// often than Go would takes a third off the slowest calls, for some 50 MB.
	debug.SetGCPercent(400)
	log := logrus.NewEntry(logrus.New())
	log.Logger.AddHook(hostview.Log{})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, log)
	stop()
	if err != nil {
		log.WithError(err).Error("particle plugin ended")
		os.Exit(1)
	}
}

// startLimit is how long Docker's calls may wait for a socket at all; from then on
// they wait for an answer. Docker dials the socket of a plugin that it starts for nine
// seconds, whatever time it was given (pluginPostStart in moby's
// plugin/manager_linux.go, 20.10 to 29), and then takes the plugin for broken; at its
// own start nobody asks it again. A start that fails mostly does so earlier, and is
// told to whoever wanted it.
const startLimit = 4 * time.Second

func run(ctx context.Context, log *logrus.Entry) error {
	p, open, err := start(ctx, log)
	if err == nil {
		defer p.close()
		return p.serve(ctx, open)
	}
	open.close()
	log.WithError(err).Error("particle plugin cannot start")
	linger(ctx)
	return err
}

// start opens everything; the doors are open if it took too long for Docker.
func start(ctx context.Context, log *logrus.Entry) (p *plugin, early doors, err error) {
	settings, err := readSettings(os.Getenv)
	if err != nil {
		return nil, nil, err
	}
	log.Logger.SetLevel(settings.level)
	log.Logger.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true}) // dockerd adds the time
	done := make(chan struct{})
	go func() {
		defer close(done)
		p, err = open(ctx, settings, log)
	}()
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	select {
	case <-done:
		return p, nil, err
	case <-limit.C:
	}
	log.WithField("after", startLimit).Warn("particle plugin is slow to start; Docker's calls wait")
	early, unopened := openDoors()
	<-done
	if err == nil && unopened != nil {
		p.close()
		err = unopened
	}
	return p, early, err
}

// linger waits until Docker has given the plugin up, which it tells by SIGTERM.
// It starts one that ends earlier again while it still waits for its socket, and
// then takes it for enabled although it is not, or the other way round (seen
// with 20.10.24).
func linger(ctx context.Context) {
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	select {
	case <-ctx.Done():
	case <-limit.C:
	}
}
