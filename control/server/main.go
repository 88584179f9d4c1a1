package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Argument is what the program is executed with to be a server.
const Argument = "cluster-store"

// endLimit bounds what a child still does once it is to end.
const endLimit = time.Second

// readyLine is what a child writes when its store answers.
const readyLine = "ready"

// Main is the child: it reads its configuration from in, and serves until in is
// at its end. It returns for good only with an error; the caller ends the
// process then.
func Main(in io.Reader, out, log io.Writer) error {
	debug.SetGCPercent(100) // the memory counts here, not the slowest call
	var c Config
	d := json.NewDecoder(in)
	if err := d.Decode(&c); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(ended)
	}()
	e, err := embed.StartEtcd(c.etcd(lines(log)))
	if err != nil {
		return err
	}
	ready := e.Server.ReadyNotify()
	for {
		select {
		case <-ready:
			ready = nil
			if _, err := fmt.Fprintln(out, readyLine); err != nil {
				return err
			}
		case err := <-e.Err():
			return err
		case <-e.Server.StopNotify():
			return ErrRemoved
		case <-ended:
			// What is committed is known on disk only once it ends: of what was
			// confirmed last nothing is lost then if this server has to stand alone.
			stopped := make(chan struct{})
			go func() {
				e.Server.HardStop()
				close(stopped)
			}()
			select {
			case <-stopped:
			case <-time.After(endLimit):
			}
			return nil
		}
	}
}

// ErrRemoved: etcd ends by itself when another server has removed it.
var ErrRemoved = errors.New("this server was removed from the store")

// ErrLost: a server that has lost its data must not go on as if it had never had any.
var ErrLost = errors.New("this server's data is gone, and others serve the store")

// ErrSetBack: the leader counts on what a server has confirmed. One that does not have it
// any more, as after its disk was restored from a copy, ends as soon as it is told of it.
var ErrSetBack = errors.New("this server's data is older than what it has confirmed to the others")

// lines is a logger that writes warnings and worse, a JSON object each.
func lines(w io.Writer) *zap.Logger {
	e := zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg", LevelKey: "level", EncodeLevel: zapcore.LowercaseLevelEncoder})
	return zap.New(zapcore.NewCore(e, zapcore.Lock(zapcore.AddSync(w)), zapcore.WarnLevel))
}

// Run is Main on the process's own files, for a program's main.
func Run() {
	if err := Main(os.Stdin, os.Stdout, os.Stderr); err != nil {
		lines(os.Stderr).Error(err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}
