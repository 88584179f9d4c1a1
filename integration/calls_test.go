package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
)

// caller talks to a host's plugin as its dockerd does.
type caller struct{ client *http.Client }

func newCaller(b *bed) *caller {
	socket := b.host.Root() + hostpath.DriverSocket
	return &caller{&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}}
}

// call posts a request and decodes the answer into it, if wanted.
func (c *caller) call(ctx context.Context, method string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", method, answer)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}

type object = map[string]any

// connect does the three calls of one container's start, as Docker up to 27
// sends them, and times each.
func (c *caller) connect(ctx context.Context, pool, network string, i int) (times [3]time.Duration, err error) {
	endpoint := fmt.Sprintf("%064x", i+1)
	var address struct{ Address string }
	calls := []func() error{
		func() error { return c.call(ctx, "IpamDriver.RequestAddress", object{"PoolID": pool}, &address) },
		func() error {
			return c.call(ctx, "NetworkDriver.CreateEndpoint", object{"NetworkID": network, "EndpointID": endpoint,
				"Interface": object{"Address": address.Address}, "Options": object{}}, nil)
		},
		func() error {
			return c.call(ctx, "NetworkDriver.Join", object{"NetworkID": network, "EndpointID": endpoint,
				"SandboxKey": fmt.Sprintf("/var/run/docker/netns/%012x", i+1)}, nil)
		},
	}
	for n, call := range calls {
		began := time.Now()
		if err := call(); err != nil {
			return times, err
		}
		times[n] = time.Since(began)
	}
	return times, nil
}

// BenchmarkPluginCalls times what a container's start asks of the plugin, over
// its real socket and with real mounts, while a network grows to 10,000
// endpoints: each figure is over 1,000 connections, in microseconds.
func BenchmarkPluginCalls(b *testing.B) {
	ctx := context.Background()
	bed, err := newBed(ctx, lab.Options{Engine: engines()[0]}, false)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := bed.close(); err != nil {
			b.Error(err)
		}
	}()
	if _, err := bed.docker(ctx, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--subnet", "10.0.0.0/8", "jobs"); err != nil {
		b.Fatal(err)
	}
	status, err := bed.status(ctx)
	if err != nil {
		b.Fatal(err)
	}
	c, network := newCaller(bed), status.Networks[0]
	const steps, all = 1_000, 10_000
	for first := 0; first < all; first += steps {
		var sums []time.Duration
		for i := range steps {
			times, err := c.connect(ctx, string(network.Pools[0].ID), string(network.ID), first+i)
			if err != nil {
				b.Fatal(err)
			}
			sums = append(sums, times[0]+times[1]+times[2])
		}
		slices.Sort(sums)
		b.ReportMetric(micro(sums[steps/2]), fmt.Sprintf("p50-us@%d", first+steps))
		b.ReportMetric(micro(sums[steps*99/100]), fmt.Sprintf("p99-us@%d", first+steps))
	}
	b.ReportMetric(0, "ns/op") // one run is the whole measurement
}

func micro(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
