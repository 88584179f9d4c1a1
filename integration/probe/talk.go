package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// echo sends each connection back what it says.
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
}

const (
	talkEvery = 50 * time.Millisecond // how often talk says something
	tellEvery = time.Second           // how often it tells of the answers
)

// talk keeps one connection busy until a signal. After an answer it tells, now and
// then, how many there were and how long the longest took since it told last. It
// fails when the connection does.
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
	dialer := net.Dialer{Timeout: o.timeout}
	conn, err := dialer.DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintf(out, "talking to %s\n", conn.RemoteAddr())
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var longest time.Duration
	told := time.Now()
	answers := bufio.NewReader(conn)
	tick := time.NewTicker(talkEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		began := time.Now()
		err := exchange(conn, answers, n, o.timeout)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d answers: %w", n, err)
		}
		longest = max(longest, time.Since(began))
		if time.Since(told) >= tellEvery {
			fmt.Fprintf(out, "%d answers, the longest after %s\n", n+1, longest.Round(time.Millisecond))
			told, longest = time.Now(), 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// exchange says one line and waits for its echo.
func exchange(conn net.Conn, answers *bufio.Reader, n int, timeout time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "%d\n", n); err != nil {
		return err
	}
	line, err := answers.ReadString('\n')
	if err == nil && line != fmt.Sprintf("%d\n", n) {
		err = fmt.Errorf("said %d and heard %q", n, line)
	}
	return err
}
