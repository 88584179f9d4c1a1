package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/seccomp/rawjson"
	"github.com/particle-net/particle/topology"
)

// ask is runtimeapi.Call for a program that does one thing at a time. Package
// net would start its poller and threads to wait on, and encoding/json would
// build its encoders, for one line each way; together they are a third of what
// an invocation costs. The errors are those of runtimeapi.Call.
func ask(socket string, request []byte, limit time.Duration) (runtimeapi.Reply, error) {
	deadline := time.Now().Add(limit)
	line, err := exchange(socket, append(request, '\n'), deadline)
	var reply runtimeapi.Reply
	if err == nil {
		reply, err = readReply(line)
	}
	if err != nil {
		return runtimeapi.Reply{}, &fault.Error{Op: "ask", On: socket, Err: fmt.Errorf("%w: %w", runtimeapi.ErrUnreachable, err),
			Fix: "look at `docker plugin ls` and run `docker plugin enable particle-net`"}
	}
	if reply.Err != "" {
		return runtimeapi.Reply{}, errors.New(reply.Err)
	}
	return reply, nil
}

// insist is ask for a container that is known to be ours: while nobody answers,
// it asks again until the host's patience ends.
func (h *Host) insist(request []byte, limit time.Duration) (runtimeapi.Reply, error) {
	const pause = 50 * time.Millisecond
	for began := time.Now(); ; {
		reply, err := ask(h.Socket, request, limit)
		if !errors.Is(err, runtimeapi.ErrUnreachable) || time.Since(began) > h.Patience {
			return reply, err
		}
		<-time.After(pause)
	}
}

// exchange sends a line and returns the one that comes back.
func exchange(socket string, line []byte, deadline time.Time) ([]byte, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	if err := limitWait(fd, deadline); err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	for len(line) > 0 {
		// Without MSG_NOSIGNAL a plugin that hangs up would end this process.
		n, err := syscall.SendmsgN(fd, line, nil, nil, syscall.MSG_NOSIGNAL)
		if err != nil && err != syscall.EINTR {
			return nil, fmt.Errorf("send: %w", err)
		}
		line = line[max(n, 0):]
	}
	return readLine(fd, deadline)
}

// readLine reads up to a line break, which ends a reply, or to the end.
func readLine(fd int, deadline time.Time) ([]byte, error) {
	buf := make([]byte, 0, 2048)
	for {
		if err := limitWait(fd, deadline); err != nil {
			return nil, err
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := syscall.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return nil, errLate
		case err != nil:
			return nil, fmt.Errorf("receive: %w", err)
		}
		buf = buf[:len(buf)+n]
		if n == 0 || buf[len(buf)-1] == '\n' {
			return buf, nil
		}
	}
}

// errLate is the cause when the plugin took longer than the limit.
var errLate = errors.New("no reply in time")

// limitWait bounds the next wait in the kernel, connecting included (unix(7)
// and socket(7): the timeouts hold for connect, read and write alike).
func limitWait(fd int, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return errLate
	}
	wait := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds()) // 0 would mean for ever
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	return syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &wait)
}

// placeRequest, claimRequest and releaseRequest are runtimeapi.Request as
// encoding/json writes it, but for members that are empty.

func placeRequest(p runtimeapi.Place) []byte {
	b := rawjson.Quote([]byte(`{"place":{"container":`), string(p.Container))
	b = rawjson.Quote(append(b, `,"name":`...), p.Name)
	b = append(b, `,"networks":[`...)
	for i, n := range p.Networks {
		if i > 0 {
			b = append(b, ',')
		}
		b = rawjson.Quote(append(b, `{"name":`...), n.Name)
		b = append(rawjson.Quote(append(b, `,"id":`...), n.ID), '}')
	}
	b = append(b, ']')
	if p.Own {
		b = append(b, `,"own":true`...)
	}
	return append(b, `}}`...)
}

func claimRequest(c runtimeapi.Claim) []byte {
	b := rawjson.Quote([]byte(`{"claim":{"container":`), string(c.Container))
	b = rawjson.Quote(append(b, `,"name":`...), c.Name)
	b = rawjson.Quote(append(b, `,"network":`...), string(c.Network))
	b = strconv.AppendInt(append(b, `,"pid":`...), int64(c.Pid), 10)
	b = rawjson.Quote(append(b, `,"cgroup":`...), c.Cgroup)
	if c.Join != "" {
		b = rawjson.Quote(append(b, `,"join":`...), string(c.Join))
	}
	if c.Own {
		b = rawjson.Quote(append(b, `,"own":true,"reason":`...), c.Reason)
	}
	b = rawjson.Quote(append(b, `,"hostname":`...), c.Hostname)
	b = append(b, `,"hosts":[`...)
	for i, line := range c.Hosts {
		if i > 0 {
			b = append(b, ',')
		}
		b = rawjson.Quote(append(b, `{"addr":`...), line.Addr.String())
		b = append(b, `,"names":[`...)
		for i, name := range line.Names {
			if i > 0 {
				b = append(b, ',')
			}
			b = rawjson.Quote(b, name)
		}
		b = append(b, `]}`...)
	}
	return append(b, `]}}`...)
}

func releaseRequest(id topology.ContainerID) []byte {
	return append(rawjson.Quote([]byte(`{"release":{"container":`), string(id)), `}}`...)
}

// readReply reads what the shim asks for; a Status is left out.
func readReply(doc []byte) (runtimeapi.Reply, error) {
	var r runtimeapi.Reply
	top, err := rawjson.Root(doc)
	if err != nil {
		return r, err
	}
	return r, rawjson.Members(doc, top, func(key string, value rawjson.Span) (err error) {
		switch {
		case key == "err":
			r.Err, err = rawjson.Text(doc, value)
		case key == "place" && value.Kind(doc) == '{':
			r.Place = new(runtimeapi.Placement)
			err = readPlacement(doc, value, r.Place)
		case key == "claim" && value.Kind(doc) == '{':
			r.Claim = new(runtimeapi.Claimed)
			err = readClaimed(doc, value, r.Claim)
		}
		return err
	})
}

func readPlacement(doc []byte, object rawjson.Span, p *runtimeapi.Placement) error {
	return rawjson.Members(doc, object, func(key string, value rawjson.Span) (err error) {
		var text string
		switch key {
		case "member":
			p.Member = rawjson.Bool(doc, value)
		case "network":
			text, err = rawjson.Text(doc, value)
			p.Network = topology.NetworkID(text)
		case "networkName":
			p.NetworkName, err = rawjson.Text(doc, value)
		case "namespace":
			p.Namespace, err = rawjson.Text(doc, value)
		case "own":
			p.Own = rawjson.Bool(doc, value)
		case "supervised":
			p.Supervised = rawjson.Bool(doc, value)
		case "internal":
			p.Internal = rawjson.Bool(doc, value)
		case "resolver":
			if text, err = rawjson.Text(doc, value); text != "" {
				p.Resolver, err = netip.ParseAddr(text)
			}
		}
		return err
	})
}

// readClaimed leaves the addresses to their own package: they are rare.
func readClaimed(doc []byte, object rawjson.Span, c *runtimeapi.Claimed) error {
	return rawjson.Members(doc, object, func(key string, value rawjson.Span) error {
		if key != "addresses" || value.Kind(doc) != '{' {
			return nil
		}
		c.Addresses = new(runtimeapi.Addresses)
		return json.Unmarshal(doc[value.Start:value.End], c.Addresses)
	})
}
