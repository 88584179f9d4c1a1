package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// pester asks for an address that is not the own, over and over, and says how often
// it was refused. Anything but the guard's refusal ends it.
func pester(ctx context.Context, out io.Writer, args []string) error {
	_, rest, err := parse(args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("usage: probe pester ADDR:PORT")
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var lc net.ListenConfig
	for n := 1; ; n++ {
		l, err := lc.Listen(ctx, "tcp4", rest[0])
		if err == nil {
			return fmt.Errorf("bound %s after %d refusals", l.Addr(), n-1)
		}
		if !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("after %d refusals: %w", n-1, err)
		}
		if n%100 == 0 {
			fmt.Fprintf(out, "refused %d times\n", n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
