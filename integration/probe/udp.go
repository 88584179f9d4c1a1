package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

func echoPackets(ctx context.Context, conn net.PacketConn) error {
	return eachPacket(ctx, conn, func(packet []byte, peer net.Addr) error {
		_, err := conn.WriteTo(packet, peer)
		return err
	})
}

// eachPacket does something with whatever comes, until ctx ends, with which the caller
// closes conn.
func eachPacket(ctx context.Context, conn net.PacketConn, do func(packet []byte, peer net.Addr) error) error {
	packet := make([]byte, 64<<10)
	for {
		n, peer, err := conn.ReadFrom(packet)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = do(packet[:n], peer)
		}
		if err != nil {
			return err
		}
	}
}

// udpSend sends one packet and prints the answer and who gave it. The socket is
// not connected, so that an answer from a wrong address is seen and not dropped.
func udpSend(ctx context.Context, out io.Writer, args []string) error {
	o, rest, err := parse(args)
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		return errors.New("ADDR:PORT and a text, please")
	}
	to, err := net.ResolveUDPAddr("udp", rest[0])
	if err != nil {
		return err
	}
	source, err := expandHost(o.source)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(source, "0"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(o.timeout)); err != nil {
		return err
	}
	if _, err := conn.WriteTo([]byte(rest[1]), to); err != nil {
		return err
	}
	packet := make([]byte, 64<<10)
	n, peer, err := conn.ReadFrom(packet)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s from %s\n", packet[:n], peer)
	return err
}
