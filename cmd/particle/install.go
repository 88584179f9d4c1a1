package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/install"
)

func installCommand() *cobra.Command {
	var opts install.Options
	var yes bool
	var set []string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install on a Docker engine, or upgrade what is installed",
		Long: `install makes an image of the programs, puts particle-runtime and particle into
/usr/local/bin of the engine's host, registers the runtime in dockerd's
configuration (which is reloaded; dockerd is not restarted), and makes and
enables the plugin. It ends with a container on a network as a test.

It can be run again at any time: to upgrade, or after it was interrupted.
Running containers go on meanwhile. If it fails, it takes its steps back.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if opts.Settings, err = parseSettings(set); err != nil {
				return err
			}
			api, err := install.Connect()
			if err != nil {
				return err
			}
			defer api.Close()
			if !cmd.Flags().Changed("no-default-runtime") {
				if opts.NoDefaultRuntime, err = install.LeavesDefault(cmd.Context(), api); err != nil {
					return err
				}
			}
			what := "This changes the default runtime of the containers on"
			if opts.NoDefaultRuntime {
				what = "This adds a runtime to the configuration of Docker on"
			}
			if err := confirm(cmd, yes, what+" "+where(api)+" and makes dockerd reload its configuration."); err != nil {
				return err
			}
			if err := install.Run(cmd.Context(), api, opts, printer(cmd.OutOrStdout())); err != nil {
				return err
			}
			runtime := ""
			if opts.NoDefaultRuntime {
				runtime = " --runtime particle"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), `
Particle is installed. Create a network and run containers on it:

  docker network create -d particle --ipam-driver particle jobs
  docker run%s --rm --network jobs IMAGE

`+"`particle status` shows what is there, `particle doctor` what is missing.\n", runtime)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.From, "from", "", "`directory` of the three programs (default: where this one is)")
	flags.BoolVar(&opts.NoDefaultRuntime, "no-default-runtime", false, "leave the engine's default runtime as it is; run containers with --runtime particle (default: as it is installed)")
	flags.StringArrayVar(&set, "set", nil, "plugin setting as `NAME=VALUE`, for example PARTICLE_VTEP=192.0.2.7; may be repeated")
	flags.BoolVar(&opts.NoVerify, "no-test", false, "leave out the test with a network and a container")
	flags.BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func uninstallCommand() *cobra.Command {
	var opts install.RemoveOptions
	var yes bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything from a Docker engine",
		Long: `uninstall removes the plugin, the runtime, the programs and all state from the
engine's host, and restores dockerd's configuration file as it was.

It refuses on a host that is in a cluster: run particle cluster leave first. And it
refuses while there are particle networks, or containers that were made while
particle was the default runtime: Docker remembers the runtime's name in each of
them, and could not start them again.

It refuses, too, while other plugins of Docker run through particle-runtime, as those
do that were started after a restart of dockerd since the install: disable them,
uninstall, restart dockerd, and enable them again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := install.Connect()
			if err != nil {
				return err
			}
			defer api.Close()
			if err := confirm(cmd, yes, "This removes particle from "+where(api)+"."); err != nil {
				return err
			}
			if err := install.Remove(cmd.Context(), api, opts, printer(cmd.OutOrStdout())); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "\nParticle is removed.")
			return err
		},
	}
	cmd.Flags().BoolVar(&opts.Force, "force", false, "go on although networks, containers or a cluster need it: containers are stopped, and cannot be started again, and the cluster is left")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func parseSettings(set []string) (map[string]string, error) {
	values := map[string]string{}
	for _, entry := range set {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" {
			return nil, fault.New("read setting", entry, "it is not NAME=VALUE", "write, for example, --set PARTICLE_VTEP=192.0.2.7")
		}
		values[name] = value
	}
	return values, nil
}

func where(api *client.Client) string {
	if install.Local(api) {
		return "this machine"
	}
	return api.DaemonHost()
}

// confirm asks a person, and only a person.
func confirm(cmd *cobra.Command, yes bool, text string) error {
	in := cmd.InOrStdin()
	if yes || !isTerminal(in) {
		return nil
	}
	if _, err := fmt.Fprint(cmd.OutOrStdout(), text+"\nGo on? [y/N] "); err != nil {
		return err
	}
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

func isTerminal(in io.Reader) bool {
	file, ok := in.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// printer writes a line for each step.
func printer(w io.Writer) install.Progress {
	return func(s install.Step) {
		mark, detail := "ok", s.Detail
		switch {
		case s.Undone && s.Err != nil:
			mark, detail = "FAILED", "could not be taken back"
		case s.Undone:
			mark, detail = "undone", ""
		case s.Err != nil:
			mark, detail = "FAILED", ""
		}
		// Nothing can be done about a terminal that is gone.
		_, _ = fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%-7s %-8s %s", mark, s.Name, detail), " "))
	}
}
