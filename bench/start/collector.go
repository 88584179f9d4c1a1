package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/particle-net/particle/internal/fault"
)

const collectorPort = "7001"

// collector is the container that the others report to. It counts addresses that
// packets came from, whatever the reporters claim.
type collector struct {
	target string // what reporters connect to
	stream types.HijackedResponse
	lines  *bufio.Scanner // its standard output
}

// startCollector starts it and returns when it listens.
func startCollector(ctx context.Context, api *client.Client, v variant, s spec, n int) (*collector, error) {
	fail := func(err error) (*collector, error) {
		return nil, &fault.Error{Op: "start collector on network", On: s.network, Err: err}
	}
	at := "self:" + collectorPort
	if v == variantHost {
		at = "127.0.0.1:" + collectorPort
	}
	s.program = []string{"probe", "collect", "-listen", at, "-n", strconv.Itoa(n)}
	if err := createContainer(ctx, api, s); err != nil {
		return fail(err)
	}
	stream, err := api.ContainerAttach(ctx, s.name, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return fail(err)
	}
	output, w := io.Pipe()
	go func() {
		// Both streams into one: what it says on failure belongs into the error.
		_, err := stdcopy.StdCopy(w, w, stream.Reader)
		w.CloseWithError(err)
	}()
	c := &collector{stream: stream, lines: bufio.NewScanner(output)}
	// The last line names every address: up to 10,000 of 16 bytes.
	c.lines.Buffer(nil, 1<<20)
	if err := api.ContainerStart(ctx, s.name, container.StartOptions{}); err != nil {
		c.close()
		return fail(err)
	}
	if err := c.listening(ctx); err != nil {
		c.close()
		return fail(err)
	}
	return c, nil
}

// listening waits for the line that tells where it listens.
func (c *collector) listening(ctx context.Context) error {
	line, err := c.line(ctx, 30*time.Second)
	if err != nil {
		return err
	}
	target, ok := strings.CutPrefix(line, "listening on ")
	if !ok {
		return fmt.Errorf("it said %q", line)
	}
	c.target = target
	return nil
}

// line reads one line of its output, for limited time.
func (c *collector) line(ctx context.Context, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(ctx, c.close)()
	if c.lines.Scan() {
		return c.lines.Text(), nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err := c.lines.Err(); err != nil {
		return "", err
	}
	return "", io.ErrUnexpectedEOF
}

// sources waits for the reports of n containers and returns the addresses.
func (c *collector) sources(ctx context.Context, n int) ([]netip.Addr, error) {
	line, err := c.line(ctx, time.Minute)
	if err != nil {
		return nil, err
	}
	return parseSources(line, n)
}

// parseSources reads the collector's last line, "N ADDRESS...", and makes sure that
// it names n distinct addresses.
func parseSources(line string, n int) ([]netip.Addr, error) {
	fields := strings.Fields(line)
	if len(fields) == 0 || fields[0] != strconv.Itoa(n) {
		return nil, fmt.Errorf("the collector said %q", line)
	}
	var all []netip.Addr
	seen := map[netip.Addr]bool{}
	for _, f := range fields[1:] {
		a, err := netip.ParseAddr(f)
		if err != nil {
			return nil, err
		}
		if !seen[a] {
			all = append(all, a)
		}
		seen[a] = true
	}
	if len(all) != n {
		return nil, fmt.Errorf("%d containers reported from %d distinct addresses", n, len(all))
	}
	return all, nil
}

func (c *collector) close() { c.stream.Close() }
