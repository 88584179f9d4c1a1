package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/report"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// asking sends a request to the plugin of the engine.
type asking func(*cobra.Command, runtimeapi.Cluster) (runtimeapi.ClusterReply, error)

func askEngine(cmd *cobra.Command, req runtimeapi.Cluster) (runtimeapi.ClusterReply, error) {
	api, err := install.Connect()
	if err != nil {
		return runtimeapi.ClusterReply{}, err
	}
	defer api.Close()
	return install.Cluster(cmd.Context(), api, req)
}

func clusterCommand() *cobra.Command { return clusterCommands(askEngine) }

func clusterCommands(ask asking) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Share networks with other hosts",
		Long: `cluster makes hosts one cluster: a network that is created on any of them is
there on all, and its containers reach each other by address.

  h1$ particle cluster init                 # prints the command for the others
  h2$ particle cluster join ADDRESS         # asks for the token

Particle is to be installed on each host before. All hosts need to reach TCP ports
7790 and 7791 of each server (the first host, and those that join with --server),
servers port 7792 of each other, and all hosts each other at UDP port 4789, VXLAN's,
or with init --encrypt at 7793. All that they say to each other about networks is
encrypted and authenticated; what containers say to each other is so in a cluster
that was made with --encrypt.

Whoever may use Docker on a host may run these commands there.`,
	}
	cmd.AddCommand(clusterInit(ask), clusterJoin(ask), clusterStatus(ask), clusterToken(ask), clusterLeave(ask), clusterRemove(ask), clusterRecover(ask))
	return cmd
}

func clusterInit(ask asking) *cobra.Command {
	var address string
	var life time.Duration
	var encrypt bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster of this host, which serves its store",
		Long: `init makes a cluster of this host alone, which others can join.

With --encrypt, what containers of different hosts say to each other is encrypted
by the kernel's WireGuard on all hosts of the cluster, for good. A host whose
kernel cannot is not let in, and what cannot be encrypted is not sent. The hosts
need to reach each other at UDP port 7793, and at that of VXLAN no more.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			addr, err := parseAddress(address)
			if err != nil {
				return err
			}
			reply, err := ask(cmd, runtimeapi.Cluster{Init: &runtimeapi.ClusterInit{Address: addr, Life: tokenLife(life), Encrypt: encrypt}})
			if err != nil {
				return err
			}
			if reply.Made == nil {
				return errOther
			}
			if encrypt && reply.Made.Encryption == topology.Plain {
				return fault.New("make an encrypted cluster", "", "the plugin is older than this program, and has made one that is not encrypted",
					"run `particle cluster leave`, install the plugin of this version, and begin anew")
			}
			return report.ClusterMade(cmd.OutOrStdout(), *reply.Made, time.Now())
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "`address` of this host that the others reach (default: its tunnel address)")
	cmd.Flags().DurationVar(&life, "token-life", 24*time.Hour, "how long the token lets hosts in; 0 for ever")
	cmd.Flags().BoolVar(&encrypt, "encrypt", false, "encrypt what containers of different hosts say to each other")
	return cmd
}

func clusterToken(ask asking) *cobra.Command {
	var req runtimeapi.ClusterToken
	var life time.Duration
	var only bool
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Show the token that lets hosts in, on a host that serves the store",
		Long: `token shows the token that lets hosts in; if it has expired, a new one. Hosts
that have joined do not need it any more.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req.Life = tokenLife(life)
			reply, err := ask(cmd, runtimeapi.Cluster{Token: &req})
			if err != nil {
				return err
			}
			if reply.Made == nil {
				return errOther
			}
			if only {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), reply.Made.Token)
				return err
			}
			return report.ClusterToken(cmd.OutOrStdout(), *reply.Made, time.Now())
		},
	}
	cmd.Flags().BoolVar(&req.Rotate, "rotate", false, "make a new one; older ones are worthless then")
	cmd.Flags().DurationVar(&life, "token-life", 24*time.Hour, "how long a new one lets hosts in; 0 for ever")
	cmd.Flags().BoolVarP(&only, "quiet", "q", false, "write the token alone")
	return cmd
}

func clusterJoin(ask asking) *cobra.Command {
	var address, token, tokenFile string
	var serve bool
	cmd := &cobra.Command{
		Use:   "join ADDRESS[:PORT]",
		Short: "Make this host a member of a cluster",
		Long: `join makes this host a member of the cluster that the host at ADDRESS serves.
The token comes from --token, from a file, or from standard input, where the
list of processes does not show it:

  ssh h1 particle cluster token -q | particle cluster join 198.51.100.1

With --server this host serves the store too, also if it is a member already.
Three servers bear the loss of one; two bear none.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := parseServer(args[0])
			if err != nil {
				return err
			}
			addr, err := parseAddress(address)
			if err != nil {
				return err
			}
			text, err := readToken(cmd, token, tokenFile)
			if err != nil {
				return err
			}
			reply, err := ask(cmd, runtimeapi.Cluster{Join: &runtimeapi.ClusterJoin{Server: server, Token: text, Address: addr, Serve: serve}})
			if err != nil {
				return err
			}
			if reply.Joined == nil {
				return errOther
			}
			return report.ClusterJoined(cmd.OutOrStdout(), *reply.Joined)
		},
	}
	cmd.Flags().StringVar(&token, "token", "", "the `token` of `particle cluster token`")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "`file` with the token")
	cmd.Flags().StringVar(&address, "address", "", "`address` of this host that the others reach (default: its tunnel address)")
	cmd.Flags().BoolVar(&serve, "server", false, "serve the store too")
	cmd.MarkFlagsMutuallyExclusive("token", "token-file")
	return cmd
}

func clusterLeave(ask asking) *cobra.Command {
	var req runtimeapi.ClusterLeave
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "End this host's membership",
		Long: `leave gives up this host's part of the shared networks, and its membership. It
refuses while containers here use such networks, and on the only host that
serves the store while others are in the cluster.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := ask(cmd, runtimeapi.Cluster{Leave: &req})
			if err != nil {
				return err
			}
			if reply.Left == nil {
				return errOther
			}
			return report.ClusterLeft(cmd.OutOrStdout(), *reply.Left)
		},
	}
	cmd.Flags().BoolVar(&req.Force, "force", false, "leave in any case")
	return cmd
}

func clusterRemove(ask asking) *cobra.Command {
	return &cobra.Command{
		Use:   "remove HOST",
		Short: "Take a host that is gone out of the cluster, on a host that serves the store",
		Long: `remove takes another host out, by name, id or the start of an id: what it had can
be had by others, and its certificate is worth nothing. If it still runs, it
keeps its containers and loses the way to those of other hosts. One that was
broken into may know the token, which lets it in again: see token --rotate. One
that served the store has the key of the cluster, and is not kept out.

With an etcd of yours (PARTICLE_ETCD) it works on any host, for one that is silent.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			reply, err := ask(cmd, runtimeapi.Cluster{Remove: &runtimeapi.ClusterRemove{Host: args[0]}})
			if err != nil {
				return err
			}
			return report.ClusterRemoved(cmd.OutOrStdout(), reply)
		},
	}
}

func clusterRecover(ask asking) *cobra.Command {
	return &cobra.Command{
		Use:   "recover",
		Short: "Make this server the store's only one, when the others are gone for good",
		Long: `recover is for a store that has lost more than half of its servers, so that
nothing can be written any more. Run on one that is left, it makes that one the
only server, with all that it has in its own data; networks, claims and hosts
stay. It refuses while the store works or another server still answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := ask(cmd, runtimeapi.Cluster{Recover: &runtimeapi.Query{}})
			if err != nil {
				return err
			}
			if reply.Recovered == nil {
				return errOther
			}
			return report.ClusterRecovered(cmd.OutOrStdout(), *reply.Recovered)
		},
	}
}

func clusterStatus(ask asking) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show hosts, store and networks of the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := ask(cmd, runtimeapi.Cluster{Status: &runtimeapi.Query{}})
			if err != nil {
				return err
			}
			if reply.Status == nil {
				return errOther
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), reply.Status)
			}
			return report.Cluster(cmd.OutOrStdout(), *reply.Status, time.Now())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON, with whole ids")
	return cmd
}

var errOther = fault.New("ask the plugin", "", "it answered something else", "install the same version of the plugin and of this program")

// tokenLife turns the flag's 0, for ever, into the message's.
func tokenLife(d time.Duration) time.Duration {
	if d <= 0 {
		return -1
	}
	return d
}

// parseAddress reads an address; empty is an invalid one.
func parseAddress(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return addr, &fault.Error{Op: "read --address", On: text, Err: err, Fix: "write, for example, --address 198.51.100.2"}
	}
	return addr, nil
}

// parseServer reads ADDRESS or ADDRESS:PORT; port 0 stands for none.
func parseServer(text string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(addr, 0), nil
	}
	server, err := netip.ParseAddrPort(text)
	if err != nil {
		return server, fault.New("read the server's address", text, "it is not an IP address, with or without a port",
			"take it from what `particle cluster token` prints there, for example 198.51.100.1")
	}
	return server, nil
}

// readToken takes the token from where the user has put it.
func readToken(cmd *cobra.Command, token, file string) (string, error) {
	if token != "" {
		return token, nil
	}
	in := cmd.InOrStdin()
	if file != "" && file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", &fault.Error{Op: "read token", Err: err}
		}
		defer f.Close()
		in = f
	} else if isTerminal(in) {
		if _, err := fmt.Fprint(cmd.ErrOrStderr(), "Token: "); err != nil {
			return "", err
		}
		var line string
		_, err := fmt.Fscanln(in, &line)
		return line, err
	}
	text, err := io.ReadAll(io.LimitReader(in, 4096))
	if err == nil && strings.TrimSpace(string(text)) == "" {
		err = errors.New("there is none")
	}
	if err != nil {
		return "", &fault.Error{Op: "read token", Err: err, Fix: "pass it with --token, with --token-file or on standard input"}
	}
	return strings.TrimSpace(string(text)), nil
}
