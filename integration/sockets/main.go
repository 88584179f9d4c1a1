// Command sockets is what containers run to prove that they are apart although
// they share a network namespace. It is static, and builds for amd64 and 386.
//
//	sockets victim                         listen in every way (package attack)
//	sockets attack -victim A [CASE...]     try to be the victim, or to touch it
//	sockets table [-peer A]                do what programs do with sockets (package table)
//	sockets idle                           until a signal, for docker exec
//
// Results are lines of JSON. The own addresses are those that Docker wrote to
// /etc/hosts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/particle-net/particle/integration/sockets/attack"
	"github.com/particle-net/particle/integration/sockets/sock"
	"github.com/particle-net/particle/integration/sockets/table"
	"github.com/particle-net/particle/internal/dockerdir"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sockets:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: sockets victim | attack [flags] [case...] | table [flags] | idle")
	}
	if args[0] == "inside" && len(args) == 2 {
		return attack.Inside(args[1])
	}
	self, err := own()
	if err != nil {
		return err
	}
	switch args[0] {
	case "idle":
		<-ctx.Done()
		return nil
	case "victim":
		return attack.Victim(ctx, os.Stdout, self.Four, self.Six)
	case "attack":
		return runAttack(ctx, self, args[1:])
	case "table":
		return runTable(self, args[1:])
	}
	return fmt.Errorf("%s: no such command", args[0])
}

func runAttack(ctx context.Context, self attack.Ends, args []string) error {
	scene := attack.Scene{Self: self}
	f := flag.NewFlagSet("attack", flag.ContinueOnError)
	entry := f.String("entry", sock.Syscall, "entry of the kernel to use")
	f.BoolVar(&scene.Alone, "alone", false, "do not ask the victim; what can be said counts as heard")
	for name, e := range map[string]*attack.Ends{"victim": &scene.Victim, "third": &scene.Third, "other": &scene.Other} {
		f.TextVar(&e.Four, name, netip.Addr{}, "IPv4 address")
		f.TextVar(&e.Six, name+"6", netip.Addr{}, "IPv6 address")
	}
	f.Func("private", "IPv6 prefix of private addresses; may be repeated", func(text string) error {
		p, err := netip.ParsePrefix(text)
		scene.Private = append(scene.Private, p)
		return err
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	for _, e := range []attack.Ends{scene.Self, scene.Victim, scene.Third, scene.Other} {
		if !e.Four.Is4() || !e.Six.Is6() {
			return errors.New("self, victim, third and other need an address of each family")
		}
	}
	return attack.Run(ctx, os.Stdout, *entry, scene, f.Args()...)
}

func runTable(self attack.Ends, args []string) error {
	var peer attack.Ends
	f := flag.NewFlagSet("table", flag.ContinueOnError)
	f.TextVar(&peer.Four, "peer", netip.Addr{}, "IPv4 address of a victim")
	f.TextVar(&peer.Six, "peer6", netip.Addr{}, "its IPv6 address")
	if err := f.Parse(args); err != nil {
		return err
	}
	return table.Run(os.Stdout, table.Party(self), table.Party(peer))
}

// own are the addresses that /etc/hosts gives the host's name.
func own() (attack.Ends, error) {
	var self attack.Ends
	name, err := os.Hostname()
	if err != nil {
		return self, err
	}
	lines, err := dockerdir.ReadHosts("/etc/hosts")
	for _, line := range lines {
		switch {
		case !slices.Contains(line.Names, name):
		case line.Addr.Is4():
			self.Four = line.Addr
		default:
			self.Six = line.Addr
		}
	}
	return self, err
}
