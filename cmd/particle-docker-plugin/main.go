// Command particle-docker-plugin is the managed Docker plugin: it opens the
// data plane and the stores, answers Docker's network and IPAM calls on two
// sockets and particle-runtime's on a third, and drains at SIGTERM. What it
// built in the kernel outlives it.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/sirupsen/logrus"
)

func main() {
	// The heap is small and mostly garbage of single calls. Collecting it less
	// often than Go would takes a third off the slowest calls, for some 50 MB.
	debug.SetGCPercent(400)
	log := logrus.NewEntry(logrus.New())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, log)
	stop()
	if err != nil {
		log.WithError(err).Error("particle plugin ended")
		os.Exit(1)
	}
}

func run(ctx context.Context, log *logrus.Entry) error {
	settings, err := readSettings(os.Getenv)
	if err != nil {
		return err
	}
	log.Logger.SetLevel(settings.level)
	log.Logger.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true}) // dockerd adds the time
	p, err := open(ctx, settings, log)
	if err != nil {
		return err
	}
	defer p.close()
	return p.serve(ctx)
}
