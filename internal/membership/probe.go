package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/particle-net/particle/control/enrol"
)

// probeLimit bounds one connection to a port that ought to answer at once.
const probeLimit = 3 * time.Second

// refusalLimit is how long a server has to refuse a certificate.
const refusalLimit = 300 * time.Millisecond

// probe tells which ports of servers cannot be reached from here: those for
// enrolment and, from a server, those of the store's servers. What clients of the
// store find is in Status.Store.
func (c *current) probe(ctx context.Context, servers []enrol.Host) []string {
	type port struct {
		at   netip.AddrPort
		what string
	}
	var ports []port
	for _, s := range servers {
		ports = append(ports, port{s.Enrolment(), "enrolment of " + s.Name})
		if c.server != nil {
			ports = append(ports, port{s.Peers(), "peers of " + s.Name})
		}
	}
	var all sync.WaitGroup
	found := make([]string, len(ports))
	for i, p := range ports {
		all.Go(func() {
			if err := shake(ctx, p.at.String(), c.identity.client()); err != nil {
				found[i] = fmt.Sprintf("%s at %s: %s", p.what, p.at, err)
			}
		})
	}
	all.Wait()
	return slices.DeleteFunc(found, func(s string) bool { return s == "" })
}

// shake opens a connection and goes through TLS; nil speaks none.
func shake(ctx context.Context, at string, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	if config == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	// A client hears that its certificate is refused after its own part of the
	// handshake (TLS 1.3). One that is taken hears nothing.
	if err := conn.SetReadDeadline(time.Now().Add(refusalLimit)); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// why is what keeps an endpoint from answering, where a connection alone tells;
// empty if it does not.
func why(ctx context.Context, endpoint string, config *tls.Config) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	if u.Scheme != "https" {
		config = nil
	}
	if err := shake(ctx, u.Host, config); err != nil {
		return err.Error()
	}
	return ""
}
