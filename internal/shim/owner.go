package shim

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/seccomp/rawjson"
)

// apiLimit bounds the question to Docker. Its socket may take connections and
// not answer while the daemon starts (socket activation).
const apiLimit = 2 * time.Second

// ownsNetwork tells without the plugin whether a network is ours. In order:
//
//  1. A file with its id among the tenant namespaces: it is. They outlive the
//     plugin, and only a reboot or the network's removal takes them away.
//  2. The plugin's index of networks: it is kept up to date while the plugin
//     lives, and no network of ours can be made while it does not, so an index
//     that does not have a known id says no as surely as it says yes. A name
//     may be missing from it, because Docker does not tell the plugin names.
//  3. Docker itself, which knows the driver. It is asked for containers that
//     have never been started: Docker writes the id down at the end of a
//     container's first start.
//
// If all are silent, which is the daemon's start after a reboot with a plugin
// that does not come up, the answer is no. A container of ours that is let
// through like this is not let loose: it gets a namespace of its own with
// nothing but loopback in it, and Docker fails its start, because the driver's
// Join goes to the same missing plugin.
func (h *Host) ownsNetwork(n runtimeapi.NetworkRef) bool {
	if n.ID != "" && filepath.Base(n.ID) == n.ID {
		if _, err := os.Lstat(filepath.Join(h.Namespaces, n.ID)); err == nil {
			return true
		}
	}
	index, err := os.ReadFile(h.Index)
	if err == nil {
		if indexed(string(index), n) {
			return true
		}
		if n.ID != "" {
			return false
		}
	}
	question := n.ID
	if question == "" {
		question = n.Name
	}
	switch h.driver(question) {
	case hostpath.DriverName, hostpath.PluginName:
		return true
	}
	return false
}

// indexed looks a network up in lines of "id space name". A name that the user
// typed may be the start of an id, of which Docker asks for no minimum.
func indexed(index string, n runtimeapi.NetworkRef) bool {
	for line := range strings.Lines(index) {
		id, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if id == "" {
			continue
		}
		if n.ID != "" && n.ID == id {
			return true
		}
		if n.ID == "" && n.Name != "" && (n.Name == name || n.Name == id) {
			return true
		}
	}
	return false
}

// driver asks the Docker API for a network's driver; it is empty if there is no
// such network or no answer. HTTP/1.0 keeps the reply free of chunks, so that
// this is all of the protocol that is needed.
func (h *Host) driver(network string) string {
	conn, err := net.DialTimeout("unix", h.Docker, apiLimit)
	if err != nil {
		return ""
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(apiLimit)); err != nil {
		return ""
	}
	if _, err := io.WriteString(conn, "GET /networks/"+escapePath(network)+" HTTP/1.0\r\nHost: docker\r\n\r\n"); err != nil {
		return ""
	}
	reply, err := io.ReadAll(io.LimitReader(conn, maxReply))
	if err != nil {
		return ""
	}
	return driverIn(reply)
}

// maxReply bounds the description of a network, in bytes; it grows with the
// number of containers on it.
const maxReply = 16 << 20

func driverIn(reply []byte) string {
	head, body, ok := bytes.Cut(reply, []byte("\r\n\r\n"))
	version, status, _ := strings.Cut(string(head), " ")
	if !ok || !strings.HasPrefix(version, "HTTP/1.") || !strings.HasPrefix(status, "200") {
		return ""
	}
	top, err := rawjson.Root(body)
	driver := ""
	if err == nil {
		err = rawjson.Members(body, top, func(key string, value rawjson.Span) (err error) {
			if key == "Driver" {
				driver, err = rawjson.Text(body, value)
			}
			return err
		})
	}
	if err != nil {
		return ""
	}
	return driver
}

// escapePath leaves only what needs no thought in a URL's path.
func escapePath(s string) string {
	const digits = "0123456789ABCDEF"
	var out []byte
	for i := range len(s) {
		b := s[i]
		if b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '_' || b == '.' {
			out = append(out, b)
		} else {
			out = append(out, '%', digits[b>>4], digits[b&15])
		}
	}
	return string(out)
}
