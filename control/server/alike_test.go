package server_test

import (
	"crypto/tls"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control/server"
)

// lines counts what is logged.
type lines struct{ atomic.Int64 }

func (*lines) Levels() []logrus.Level { return logrus.AllLevels }

func (l *lines) Fire(*logrus.Entry) error {
	l.Add(1)
	return nil
}

// Anybody can make connections that the store refuses, and a host that was removed makes
// one after the other. The log does not grow with them.
func TestManyRefusedConnections(t *testing.T) {
	w, said := newWorld(t), &lines{}
	log := logrus.New()
	log.SetOutput(io.Discard)
	log.AddHook(said)
	s := server.Start(func() server.Config { return w.config }, []string{os.Args[0], server.Argument}, logrus.NewEntry(log))
	t.Cleanup(s.Stop)
	ready(t, s)
	stranger := w.tls.Clone()
	stranger.Certificates = nil
	for range 300 {
		c, err := tls.Dial("tcp", w.config.Host.Clients().String(), stranger)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(make([]byte, 1)) // until it is refused
		_ = c.Close()
	}
	eventually(t, "a word of them", func() bool { return said.Load() > 0 })
	s.Stop() // by then all was said
	if n := said.Load(); n > 30 {
		t.Errorf("of 300 connections that were refused the log has %d lines", n)
	}
}
