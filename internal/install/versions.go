package install

import (
	"context"

	"github.com/docker/docker/client"

	"github.com/particle-net/particle"
)

// Versions are those of everything that has one. Empty means that it could not
// be asked.
type Versions struct {
	CLI    string `json:"cli"`
	Plugin string `json:"plugin,omitempty"`
	Engine string `json:"engine,omitempty"`
}

// FindVersions asks the engine and the plugin, and passes over what does not
// answer.
func FindVersions(ctx context.Context, api *client.Client) Versions {
	v := Versions{CLI: particle.Version}
	engine, err := api.ServerVersion(ctx)
	if err != nil {
		return v
	}
	v.Engine = engine.Version
	if status, err := Status(ctx, api); err == nil {
		v.Plugin = status.Version
	}
	return v
}
