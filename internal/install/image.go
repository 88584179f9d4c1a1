package install

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle"
	"github.com/particle-net/particle/internal/fault"
)

// imageLabel marks our images; the Dockerfile sets it.
const imageLabel = "particle.image"

// imageName is the image of this version.
const imageName = "particle-net:" + particle.Version

// makeImage builds the image from the programs in dir.
func makeImage(ctx context.Context, api *client.Client, dir, arch string) error {
	for _, name := range programs() {
		if err := checkProgram(filepath.Join(dir, name), arch); err != nil {
			return err
		}
	}
	err := buildImage(ctx, api, dir)
	if err != nil && ctx.Err() == nil {
		// An engine that has given up the classic builder still imports.
		files := map[string]string{}
		for _, name := range programs() {
			files[name] = filepath.Join(dir, name)
		}
		if imported := importImage(ctx, api, imageName, files); imported != nil {
			return &fault.Error{Op: "make image", On: imageName, Err: errors.Join(err, imported),
				Fix: "look at the log of the Docker daemon"}
		}
		return nil
	}
	return err
}

// buildImage uses the classic builder, which every engine from 20.10 to 29 has:
// BuildKit would need a session of its own protocol for the same three files.
func buildImage(ctx context.Context, api *client.Client, dir string) error {
	context := archive(func(w *tar.Writer) error {
		if err := addText(w, "Dockerfile", particle.Dockerfile); err != nil {
			return err
		}
		for _, name := range programs() {
			if err := addFile(w, name, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	})
	defer context.Close()
	response, err := api.ImageBuild(ctx, context, build.ImageBuildOptions{
		Version: build.BuilderV1, Tags: []string{imageName}, Remove: true, ForceRemove: true,
	})
	if err != nil {
		return &fault.Error{Op: "build image", On: imageName, Err: err, Fix: "look at the log of the Docker daemon"}
	}
	defer response.Body.Close()
	if err := drain(response.Body); err != nil {
		return &fault.Error{Op: "build image", On: imageName, Err: err, Fix: "look at the log of the Docker daemon"}
	}
	return nil
}

// importImage makes an image without a builder. files maps the programs' names
// in the image to files here.
func importImage(ctx context.Context, api *client.Client, name string, files map[string]string) error {
	root := archive(func(w *tar.Writer) error {
		for _, program := range slices.Sorted(maps.Keys(files)) {
			if err := addFile(w, "bin/"+program, files[program]); err != nil {
				return err
			}
		}
		return nil
	})
	defer root.Close()
	response, err := api.ImageImport(ctx, image.ImportSource{Source: root, SourceName: "-"}, name, image.ImportOptions{
		Changes: []string{`ENTRYPOINT ["/bin/particle"]`, "LABEL " + imageLabel + "=true"},
	})
	if err != nil {
		return &fault.Error{Op: "import image", On: name, Err: err, Fix: "look at the log of the Docker daemon"}
	}
	defer response.Close()
	return drain(response)
}

// drain reads a stream of progress messages to its end, and finds the error in
// it: the HTTP status was sent before the work began.
func drain(stream io.Reader) error {
	messages := json.NewDecoder(stream)
	for {
		var message struct {
			Error string `json:"error"`
		}
		if err := messages.Decode(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if message.Error != "" {
			return errors.New(message.Error)
		}
	}
}

// images lists our images, the newest first, with what an interrupted build has
// left.
func images(ctx context.Context, api *client.Client) ([]image.Summary, error) {
	list, err := api.ImageList(ctx, image.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", imageLabel))})
	if err != nil {
		return nil, &fault.Error{Op: "list images", Err: err}
	}
	slices.SortStableFunc(list, func(a, b image.Summary) int { return int(b.Created - a.Created) })
	return list, nil
}

// named tells whether an image has our name, whatever the version. Engines up to
// 24 list an image without a name as <none>:<none>.
func named(i image.Summary) bool {
	return slices.ContainsFunc(i.RepoTags, func(tag string) bool { return strings.HasPrefix(tag, "particle-net:") })
}

// findImage gives the id of the image with our name, empty if there is none.
func findImage(ctx context.Context, api *client.Client, name string) (string, error) {
	found, err := api.ImageInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", &fault.Error{Op: "look for image", On: name, Err: err}
	}
	return found.ID, nil
}

// removeImages removes our images but the one with the id keep and what it
// consists of.
func removeImages(ctx context.Context, api *client.Client, keep string) error {
	list, err := images(ctx, api)
	if err != nil {
		return err
	}
	spared := map[string]bool{}
	for id := keep; id != ""; {
		spared[id] = true
		found, err := api.ImageInspect(ctx, id)
		if err != nil {
			break // nothing further is known of it
		}
		//lint:ignore SA1019 engines up to 28 still tell a layer's parent only here
		id = found.Parent
	}
	var problems []error
	for _, i := range list {
		if spared[i.ID] {
			continue
		}
		_, err := api.ImageRemove(ctx, i.ID, image.RemoveOptions{Force: true, PruneChildren: true})
		// An image that others are made of goes when they go.
		if err != nil && !errdefs.IsNotFound(err) && !strings.Contains(err.Error(), "dependent child") {
			problems = append(problems, &fault.Error{Op: "remove image", On: i.ID, Err: err, Fix: "run `docker image rm -f` on it"})
		}
	}
	return errors.Join(problems...)
}
