package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Argument is what the program is executed with to be a server.
const Argument = "cluster-store"

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
			return nil
		}
	}
}

// ErrRemoved: etcd ends by itself when another server has removed it.
var ErrRemoved = errors.New("this server was removed from the store")

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
