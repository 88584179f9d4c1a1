package vm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/particle-net/particle/internal/buildcache"
	"github.com/particle-net/particle/internal/fault"
)

// kernel is one of the distribution's, unpacked: dir holds vmlinuz and
// lib/modules/<release>.
type kernel struct {
	release string // as uname -r says
	dir     string
}

func (k kernel) image() string   { return filepath.Join(k.dir, "vmlinuz") }
func (k kernel) modules() string { return filepath.Join(k.dir, "lib", "modules") }

// findKernel returns the newest kernel of a series, such as 6.1, that the
// distribution has, downloading it the first time.
func findKernel(ctx context.Context, series string, progress io.Writer) (kernel, error) {
	release, err := newestRelease(ctx, series)
	if err != nil {
		return kernel{}, err
	}
	if release == "" { // a fresh machine has no lists of packages
		if _, err := output(ctx, "", "apt-get", "update", "-q"); err != nil {
			return kernel{}, err
		}
		if release, err = newestRelease(ctx, series); err != nil {
			return kernel{}, err
		}
	}
	if release == "" {
		return kernel{}, fault.New("find kernel", series, "the configured sources have no package linux-image-"+series+".*-amd64", "choose a series that apt-cache pkgnames linux-image- lists")
	}
	dir, err := buildcache.Dir(ctx, "kernel", release, func(dir string) error {
		fmt.Fprintf(progress, "downloading Linux %s, once\n", release)
		return unpackKernel(ctx, release, dir)
	})
	return kernel{release, dir}, err
}

// newestRelease is the newest kernel of a series in the lists of packages, ""
// if there is none.
func newestRelease(ctx context.Context, series string) (string, error) {
	const prefix = "linux-image-"
	names, err := output(ctx, "", "apt-cache", "pkgnames", prefix+series+".")
	if err != nil {
		return "", err
	}
	var releases []string
	for _, name := range strings.Fields(names) {
		releases = append(releases, strings.TrimPrefix(name, prefix))
	}
	return newest(releases), nil
}

// stock is a release of Debian's kernel for all machines, as opposed to those for
// clouds or real time.
var stock = regexp.MustCompile(`^[0-9.]+(-[0-9]+)?(\+[a-z]+[0-9]*)?-amd64$`)

var numbers = regexp.MustCompile(`[0-9]+`)

func newest(releases []string) string {
	releases = slices.DeleteFunc(releases, func(r string) bool { return !stock.MatchString(r) })
	if len(releases) == 0 {
		return ""
	}
	version := func(release string) (v []int) {
		for _, number := range numbers.FindAllString(release, -1) {
			n, _ := strconv.Atoi(number)
			v = append(v, n)
		}
		return v
	}
	return slices.MaxFunc(releases, func(a, b string) int { return slices.Compare(version(a), version(b)) })
}

// unpackKernel puts a release's files into dir.
func unpackKernel(ctx context.Context, release, dir string) error {
	if _, err := output(ctx, dir, "apt-get", "download", "-q", "linux-image-"+release); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fault.New("download", "linux-image-"+release, fmt.Sprintf("%d packages came", len(packages)), "")
	}
	if _, err := output(ctx, dir, "dpkg-deb", "--extract", packages[0], "."); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "boot", "vmlinuz-"+release), filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	for _, rest := range []string{packages[0], filepath.Join(dir, "boot"), filepath.Join(dir, "usr")} {
		if err := os.RemoveAll(rest); err != nil {
			return err
		}
	}
	_, err = output(ctx, dir, "depmod", "--basedir", ".", release)
	return err
}

// output runs a program of the distribution and returns what it prints.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name) // not on a user's PATH
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", &fault.Error{Op: name, On: strings.Join(args, " "), Err: fmt.Errorf("%w: %s", err, bytes.TrimSpace(errs.Bytes())),
			Fix: "run make packages, and check that Debian's packages can be reached"}
	}
	return string(out), nil
}
