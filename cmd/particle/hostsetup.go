package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/particle-net/particle/internal/hostsetup"
	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// hostSetupCommand is what helper containers run; see package hostsetup. It is
// no interface for people and may change with every version.
func hostSetupCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "host-setup", Hidden: true, Short: "Work on the host, in a helper container"}
	cmd.AddCommand(
		&cobra.Command{Use: "install", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			programs, err := hostsetup.OpenPrograms()
			if err != nil {
				return err
			}
			return onHost(cmd, args, func(req hostsetup.InstallRequest) (any, error) { return hostsetup.Install(req, programs) })
		}},
		&cobra.Command{Use: "unregister", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return onHost(cmd, args, func(req hostsetup.UnregisterRequest) (any, error) { return hostsetup.Unregister(req) })
		}},
		&cobra.Command{Use: "remove", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return onHost(cmd, args, func(req hostsetup.RemoveRequest) (any, error) { return hostsetup.Remove(cmd.Context(), req) })
		}},
		&cobra.Command{Use: "probe", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return onHost(cmd, args, func(req hostsetup.ProbeRequest) (any, error) { return hostsetup.Probe(cmd.Context(), req), nil })
		}},
		&cobra.Command{Use: "survivors", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return onHost(cmd, []string{"{}"}, func(struct{}) (any, error) { return hostsetup.Survivors() })
		}},
		&cobra.Command{Use: "membership", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return onHost(cmd, []string{"{}"}, func(struct{}) (any, error) { return hostsetup.FindCluster() })
		}},
		&cobra.Command{Use: "attended", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return onHost(cmd, args, func(id string) (any, error) { return hostsetup.Attended(id) })
		}},
		&cobra.Command{Use: "kernel", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(hostsetup.Kernel(cmd.Context()))
		}},
		&cobra.Command{Use: "selftest", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return hostsetup.Selftest(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		}},
		&cobra.Command{Use: "status", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := install.AskPlugin(cmd.Context())
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(status)
		}},
		&cobra.Command{Use: "cluster", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var req runtimeapi.Cluster
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&req); err != nil {
				return fmt.Errorf("read request: %w", err)
			}
			reply, err := install.AskCluster(cmd.Context(), req)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(reply)
		}},
	)
	return cmd
}

// onHost reads a request, enters the host, and writes the result.
func onHost[R any](cmd *cobra.Command, args []string, do func(R) (any, error)) error {
	var req R
	if err := json.Unmarshal([]byte(args[0]), &req); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	if err := hostsetup.Enter(); err != nil {
		return err
	}
	result, err := do(req)
	if err != nil {
		return err
	}
	return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
}
