package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// echo sends back what it hears, by TCP and UDP.
func echo(ctx context.Context, out io.Writer, args []string) error {
	o, _, err := parse(args)
	if err != nil {
		return err
	}
	l, err := listen(ctx, out, o.listen)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var lc net.ListenConfig
	packets, err := lc.ListenPacket(ctx, "udp", l.Addr().String())
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { packets.Close() })()
	var both errgroup.Group
	both.Go(func() error { return echoPackets(ctx, packets) })
	both.Go(func() error {
		for {
			conn, err := l.Accept()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn) // how it ends is seen by the other side
			}()
		}
	})
	return both.Wait()
}

const (
	talkEvery = 200 * time.Millisecond // how often talk says something
	tellEvery = time.Second            // how often it tells of the answers
	lostAfter = 500 * time.Millisecond // a datagram without an answer is
)

// talk keeps one connection busy until a signal, or with -udp says one datagram after
// the other. After an answer it tells, now and then, how many there were, how many
// datagrams were lost, and the longest without an answer since it told last. It fails
// when the connection does, or a datagram is refused.
func talk(ctx context.Context, out io.Writer, args []string) error {
	o, rest, err := parse(args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("one ADDR:PORT, please")
	}
	to, err := expand(rest[0])
	if err != nil {
		return err
	}
	network, exchange, limit := "tcp", exchange, o.timeout
	if o.udp {
		network, exchange, limit = "udp", exchangePackets, lostAfter
	}
	dialer := net.Dialer{Timeout: o.timeout}
	conn, err := dialer.DialContext(ctx, network, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintf(out, "talking to %s\n", conn.RemoteAddr())
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var longest time.Duration
	told, answered := time.Now(), time.Now()
	answers, lost := 0, 0
	in := bufio.NewReader(conn)
	tick := time.NewTicker(talkEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		err := exchange(conn, in, n, limit)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			answers++
			longest, answered = max(longest, time.Since(answered)), time.Now()
		case o.udp && errors.Is(err, os.ErrDeadlineExceeded):
			lost++
		default:
			return fmt.Errorf("after %d answers: %w", answers, err)
		}
		if err == nil && time.Since(told) >= tellEvery {
			fmt.Fprintf(out, "%d answers, %d lost, the longest silence %s\n", answers, lost, longest.Round(time.Millisecond))
			told, longest = time.Now(), 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// exchange says one line and waits for its echo.
func exchange(conn net.Conn, in *bufio.Reader, n int, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "%d\n", n); err != nil {
		return err
	}
	line, err := in.ReadString('\n')
	if err == nil && line != fmt.Sprintf("%d\n", n) {
		err = fmt.Errorf("said %d and heard %q", n, line)
	}
	return err
}

// exchangePackets does the same with a datagram. Echoes of earlier ones may come late.
// What cannot be sent is lost, unless somebody refuses it: then the other side is gone.
func exchangePackets(conn net.Conn, in *bufio.Reader, n int, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(conn, "%d\n", n)
	for err == nil {
		var line string
		if line, err = in.ReadString('\n'); err == nil && line == fmt.Sprintf("%d\n", n) {
			return nil
		}
	}
	return err
}
