package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/particle-net/particle/internal/lab"
)

// faultCommands are what can go wrong with a host.
func faultCommands() []*cobra.Command {
	return []*cobra.Command{
		hostCommand("cut", "Take a host off the underlay; its link stays up", func(_ context.Context, h *lab.Host) error { return h.Cut() }),
		hostCommand("heal", "Undo cut", func(_ context.Context, h *lab.Host) error { return h.Heal() }),
		hostCommand("reboot", "Pull a host's plug and boot it again", func(ctx context.Context, h *lab.Host) error { return h.Reboot(ctx) }),
		hostCommand("kill-dockerd", "End a host's dockerd with SIGKILL", func(ctx context.Context, h *lab.Host) error { return h.KillDockerd(ctx) }),
		hostCommand("stop-dockerd", "End a host's dockerd with SIGTERM", func(ctx context.Context, h *lab.Host) error { return h.StopDockerd(ctx) }),
		hostCommand("start-dockerd", "Start a host's dockerd", func(ctx context.Context, h *lab.Host) error { return h.StartDockerd(ctx) }),
		impairCommand(),
	}
}

// hostCommand does one thing to each host named.
func hostCommand(use, short string, do func(context.Context, *lab.Host) error) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   use + " HOST...",
		Short: short,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(name)
			if err != nil {
				return err
			}
			for _, arg := range args {
				h, err := l.Host(arg)
				if err != nil {
					return err
				}
				if err := do(cmd.Context(), h); err != nil {
					return err
				}
			}
			return nil
		},
	}
	nameFlag(cmd, &name)
	return cmd
}

func impairCommand() *cobra.Command {
	var i lab.Impairment
	cmd := hostCommand("impair", "Give a host a bad link; without flags a good one again", func(_ context.Context, h *lab.Host) error { return h.Impair(i) })
	cmd.Flags().Float64Var(&i.Loss, "loss", 0, "percent of packets lost in each direction")
	cmd.Flags().DurationVar(&i.Delay, "delay", 0, "added to the round trip, as in 20ms (needs netem in the kernel)")
	cmd.Flags().DurationVar(&i.Jitter, "jitter", 0, "random part of the delay")
	return cmd
}
