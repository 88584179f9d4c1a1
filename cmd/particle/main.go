// Command particle installs Particle for Docker on an engine, takes it off
// again, and tells how it is.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/particle-net/particle"
	"github.com/particle-net/particle/internal/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	if err != nil {
		if !isTold(err) {
			fmt.Fprintln(os.Stderr, report.Plain("particle: "+err.Error()))
		}
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "particle",
		Short: "Docker networks whose containers start as fast as without a network of their own",
		Long: `particle puts a network driver, an IPAM driver and a container runtime on a
Docker engine. The engine is the local one, or the one that DOCKER_HOST names
(unix://PATH, tcp://HOST:PORT or ssh://USER@HOST).

  particle install
  docker network create -d particle --ipam-driver particle jobs
  docker run --network jobs IMAGE`,
		Version:       particle.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.AddCommand(installCommand(), uninstallCommand(), clusterCommand(), statusCommand(), doctorCommand(), versionCommand(), hostSetupCommand())
	return cmd
}
