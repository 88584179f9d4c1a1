package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// listen opens the listener and says so: the line is what tests wait for.
func listen(ctx context.Context, out io.Writer, at string) (net.Listener, error) {
	at, err := expand(at)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", at)
	if err == nil {
		fmt.Fprintf(out, "listening on %s\n", l.Addr())
	}
	return l, err
}

// serve answers HTTP requests with the name and both ends of the connection.
func serve(ctx context.Context, out io.Writer, args []string) error {
	o, _, err := parse(args)
	if err != nil {
		return err
	}
	l, err := listen(ctx, out, o.listen)
	if err != nil {
		return err
	}
	return answerHTTP(ctx, l, o.name)
}

// answerHTTP tells each client what it has sent, and from where.
func answerHTTP(ctx context.Context, l net.Listener, name string) error {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client sees that its connection ends
		}
		_, _ = io.WriteString(w, told(name, r.Context().Value(http.LocalAddrContextKey), r.RemoteAddr, content))
	})}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// dialer connects from the source address, if one is given.
func dialer(source string, timeout time.Duration, network string) (*net.Dialer, error) {
	d := &net.Dialer{Timeout: timeout}
	if source == "" {
		return d, nil
	}
	host, err := expandHost(source)
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return nil, fmt.Errorf("source %s is not an address", source)
	}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: ip}
	} else {
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	return d, nil
}

// get fetches a URL and prints the body.
func get(ctx context.Context, out io.Writer, args []string) error {
	o, rest, err := parse(args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("one URL or ADDR:PORT, please")
	}
	url := rest[0]
	if !strings.Contains(url, "://") {
		url = "http://" + url + "/"
	}
	d, err := dialer(o.source, o.timeout, "tcp")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// report connects to a collector from the own address and waits for its word.
func report(ctx context.Context, out io.Writer, args []string) error {
	o, _, err := parse(args)
	if err != nil {
		return err
	}
	source := "self"
	if strings.HasPrefix(o.to, "[") {
		source = "self6"
	}
	d, err := dialer(source, o.timeout, "tcp")
	if err != nil {
		return err
	}
	conn, err := d.DialContext(ctx, "tcp", o.to)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(o.timeout)); err != nil {
		return err
	}
	fmt.Fprintf(conn, "report %s\n", conn.LocalAddr())
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, answer)
	return err
}

// collect waits until reports from n distinct addresses have come. The address is
// the one the packets came from, not the one the reporter claims.
func collect(ctx context.Context, out io.Writer, args []string) error {
	o, _, err := parse(args)
	if err != nil {
		return err
	}
	l, err := listen(ctx, out, o.listen)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	sources := map[string]bool{}
	reports := make(chan string)
	go acceptReports(ctx, l, reports)
	for len(sources) < o.n {
		select {
		case source, ok := <-reports:
			if !ok {
				return fmt.Errorf("%d of %d reported", len(sources), o.n)
			}
			sources[source] = true
		case <-ctx.Done():
			return fmt.Errorf("%d of %d reported", len(sources), o.n)
		}
	}
	_, err = fmt.Fprintf(out, "%d %s\n", len(sources), strings.Join(slices.Sorted(maps.Keys(sources)), " "))
	return err
}

// acceptReports answers each reporter before it counts.
func acceptReports(ctx context.Context, l net.Listener, reports chan<- string) {
	defer close(reports)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		source, err := takeReport(conn)
		if err != nil {
			continue // a connection without a report is not a reporter
		}
		select {
		case reports <- source:
		case <-ctx.Done():
			return
		}
	}
}

func takeReport(conn net.Conn) (string, error) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "ok\n"); err != nil {
		return "", err
	}
	source, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	return source, err
}
