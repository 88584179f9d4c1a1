package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/report"
)

// errTold ends the command with status 1 after the reason has been printed.
var errTold = errors.New("something is missing")

func isTold(err error) bool { return errors.Is(err, errTold) }

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show networks, address pools and endpoints of a host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := install.Connect()
			if err != nil {
				return err
			}
			defer api.Close()
			status, err := install.Status(cmd.Context(), api)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), status)
			}
			return report.Status(cmd.OutOrStdout(), status, time.Now())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON, with whole ids")
	return cmd
}

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Name what a host lacks, and the remedy",
		Long: `doctor checks the engine, the kernel and the settings of its host, and what is
installed. It may be run before an installation. Its exit code is 1 if
something is missing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := install.Connect()
			if err != nil {
				return err
			}
			defer api.Close()
			checks, err := install.Doctor(cmd.Context(), api)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), checks)
			} else {
				err = report.Checks(cmd.OutOrStdout(), checks)
			}
			if err == nil && report.Failed(checks) {
				err = errTold
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this program, the plugin and the engine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := install.Connect()
			if err != nil {
				return err
			}
			defer api.Close()
			v := install.FindVersions(cmd.Context(), api)
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), v)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "particle  %s\nplugin    %s\nDocker    %s\n", v.CLI,
				or(v.Plugin, "does not answer"), or(v.Engine, "does not answer"))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
