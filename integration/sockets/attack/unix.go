package attack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// unixCases reach sockets of other families whose names belong to the network
// namespace: unix sockets whose names are not files (unix(7), "abstract"), and
// netlink's.
func unixCases() []Case {
	kinds := []struct {
		name string
		kind int
	}{{"stream", unix.SOCK_STREAM}, {"seqpacket", unix.SOCK_SEQPACKET}, {"dgram", unix.SOCK_DGRAM}}
	var cases []Case
	for _, k := range kinds {
		cases = append(cases, Case{"unix/" + k.name, func(a *attacker) verdict {
			fd, err := a.Socket(unix.AF_UNIX, k.kind, 0)
			if err == nil {
				err = a.Connect(fd, sock.Abstract(abstractPrefix+k.name))
			}
			if err == nil {
				_, err = a.Send(fd, sock.Message{Data: []byte(a.token() + "\n")})
			}
			if err != nil {
				return failed(err)
			}
			return verdict{token: a.token()}
		}})
	}
	// Messages between programs that are not the kernel's.
	cases = append(cases, Case{"unix/netlink", func(a *attacker) verdict {
		v := verdict{token: a.token()}
		for protocol := range netlinkProtocols {
			fd, err := a.Socket(unix.AF_NETLINK, unix.SOCK_RAW, protocol)
			if err == nil {
				data := append(make([]byte, unix.SizeofNlMsghdr), a.token()...)
				_, err = a.Send(fd, sock.Message{Data: data, To: sock.Netlink(numberNetlink)})
			}
			if err == nil {
				v.detail += fmt.Sprintf("said by protocol %d ", protocol)
			} else if !errors.Is(err, unix.EPROTONOSUPPORT) {
				v.err = err
			}
		}
		return v
	}})
	return append(cases, Case{"unix/dgram-unconnected", func(a *attacker) verdict {
		fd, err := a.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err == nil {
			_, err = a.Send(fd, sock.Message{Data: []byte(a.token()), To: sock.Abstract(abstractPrefix + "dgram")})
		}
		if err != nil {
			return failed(err)
		}
		return verdict{token: a.token()}
	}})
}
