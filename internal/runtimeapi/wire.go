package runtimeapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/particle-net/particle/internal/fault"
)

// ErrUnreachable is the cause when no plugin listens on the socket.
var ErrUnreachable = errors.New("the particle plugin does not answer")

// maxMessage bounds a request, in bytes: the largest part of one is a hosts
// file, which no sensible container makes longer than this.
const maxMessage = 1 << 20

// Call sends one request and waits for its reply until ctx ends. An error in
// the reply is returned as it is; ErrUnreachable means that nobody was there to
// ask.
func Call(ctx context.Context, socket string, req Request) (Reply, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return Reply{}, &fault.Error{Op: "ask", On: socket, Err: fmt.Errorf("%w: %w", ErrUnreachable, err),
			Fix: "look at `docker plugin ls` and run `docker plugin enable particle-net`"}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var reply Reply
	err = json.NewEncoder(conn).Encode(req)
	if err == nil {
		err = json.NewDecoder(conn).Decode(&reply)
	}
	if err != nil {
		return Reply{}, &fault.Error{Op: "ask", On: socket, Err: fmt.Errorf("%w: %w", ErrUnreachable, err),
			Fix: "look at `docker plugin ls` and at the log of the Docker daemon"}
	}
	if reply.Err != "" {
		return Reply{}, errors.New(reply.Err)
	}
	return reply, nil
}

// Handler answers requests. It is called from many goroutines at once.
type Handler interface {
	Handle(ctx context.Context, req Request) (Reply, error)
}

// Listen opens the socket for root alone, in place of a stale one.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}

// Serve answers until ctx ends, then closes the listener and waits for the
// requests in hand. Each request has limit to be answered in.
func Serve(ctx context.Context, l net.Listener, h Handler, limit time.Duration) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		calls.Go(func() {
			defer conn.Close()
			serveOne(ctx, conn, h, limit)
		})
	}
}

func serveOne(ctx context.Context, conn net.Conn, h Handler, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if err := conn.SetDeadline(time.Now().Add(limit + time.Second)); err != nil {
		return
	}
	var req Request
	var reply Reply
	line, err := readLine(conn)
	if err == nil {
		err = json.Unmarshal(line, &req)
	}
	if err == nil {
		reply, err = h.Handle(ctx, req)
	}
	if err != nil {
		reply = Reply{Err: err.Error()}
	}
	// The caller may have gone; there is nobody left to tell.
	_ = json.NewEncoder(conn).Encode(reply)
}

func readLine(conn net.Conn) ([]byte, error) {
	r := bufio.NewReader(conn)
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxMessage {
			return nil, fault.New("read request", "", fmt.Sprintf("longer than %d bytes", maxMessage), "")
		}
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}
