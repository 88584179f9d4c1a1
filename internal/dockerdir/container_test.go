package dockerdir_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/dockerdir"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

const (
	id    = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	other = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
)

// Shaped as 20.10 and 29 write them, with what is not read left short.
const (
	configFile = `{"StreamConfig":{},"State":{"Running":false},"ID":"` + id + `","Name":"/web","Config":{"Hostname":"w1","Labels":{"a":"b","particle.namespace":"own"}},
		"NetworkSettings":{"Bridge":"","Networks":{"jobs":{"IPAMConfig":null,"NetworkID":"4f2a","DNSNames":["web"]},"blue":null}},"HostsPath":""}`
	hostConfigFile = `{"NetworkMode":"jobs","PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},"Privileged":false,"PublishAllPorts":true,
		"CapAdd":["NET_RAW"],"CapDrop":null,"Dns":["1.1.1.1"],"Sysctls":{"net.core.somaxconn":"9"}}`
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "containers", id)
	write(t, dir, map[string]string{"config.v2.json": configFile, "hostconfig.json": hostConfigFile})
	// Somebody's own directory with the right name and another's content.
	write(t, filepath.Join(root, "mine", id), map[string]string{"config.v2.json": `{"ID":"` + other + `"}`, "hostconfig.json": "{}"})
	want := dockerdir.Container{
		Dir: dir, ID: id, Name: "web", Hostname: "w1", Namespace: "own",
		Networks: []runtimeapi.NetworkRef{{Name: "blue"}, {Name: "jobs", ID: "4f2a"}},
		Host: dockerdir.HostConfig{
			NetworkMode: "jobs", PublishAllPorts: true, CapAdd: []string{"NET_RAW"},
			Sysctls: []string{"net.core.somaxconn"}, DNS: []string{"1.1.1.1"}, Ports: []string{"80/tcp"},
		},
	}
	own := filepath.Join(dir, "hosts")
	for _, c := range []struct {
		name  string
		id    string
		files []string
		found bool
	}{
		{"own files", id, []string{own}, true},
		{"user's hosts file first", id, []string{"/etc/hosts", filepath.Join(root, "mine", "x", "hosts"), own}, true},
		{"files of the container it joins", id, []string{filepath.Join(root, "containers", other, "hosts")}, true},
		{"relative and missing", id, []string{"", "hosts", "tmpfs"}, false},
		{"another's directory", other, []string{own}, false},
		{"no Docker id", "../" + id, []string{own}, false},
		{"nothing", id, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, found, err := dockerdir.Find(c.id, c.files...)
			if err != nil || found != c.found {
				t.Fatalf("found %v, %v; want %v", found, err, c.found)
			}
			if diff := cmp.Diff(want, got); found && diff != "" {
				t.Fatalf("-want +got\n%s", diff)
			}
		})
	}
}

// A directory that is Docker's and cannot be read is an error: to take the
// container for a stranger would start it without its network.
func TestFindReportsDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), id)
	write(t, dir, map[string]string{"config.v2.json": configFile, "hostconfig.json": "{"})
	if _, _, err := dockerdir.Find(id, filepath.Join(dir, "hosts")); err == nil || !strings.Contains(err.Error(), "hostconfig.json") {
		t.Fatalf("got %v", err)
	}
}

func TestMACWish(t *testing.T) {
	for config, want := range map[string]bool{
		`"Config":{"MacAddress":"02:42:ac:11:00:02"},"NetworkSettings":{"Networks":{"jobs":null}}`:                                     true,
		`"Config":{"Labels":null},"NetworkSettings":{"Networks":{"blue":null,"jobs":{"DesiredMacAddress":"02:42:ac:11:00:02"}}}`:       true,
		`"Config":{"MacAddress":""},"NetworkSettings":{"Networks":{"jobs":{"MacAddress":"02:42:ac:11:00:02","DesiredMacAddress":""}}}`: false, // what it had last
	} {
		dir := filepath.Join(t.TempDir(), id)
		write(t, dir, map[string]string{"config.v2.json": `{"ID":"` + id + `",` + config + `}`, "hostconfig.json": "{}"})
		if c, err := dockerdir.Read(dir, id); err != nil || c.MAC != want {
			t.Errorf("%s: %v, %v", config, c.MAC, err)
		}
	}
}

func TestAttachments(t *testing.T) {
	refs := func(names ...string) (out []runtimeapi.NetworkRef) {
		for _, n := range names {
			out = append(out, runtimeapi.NetworkRef{Name: n})
		}
		return out
	}
	for _, c := range []struct {
		mode            string
		connected, want []runtimeapi.NetworkRef
	}{
		{"jobs", nil, refs("jobs")},
		{"default", nil, refs("default")},
		{"default", refs("bridge", "jobs"), refs("bridge", "jobs")},
		{"blue", refs("jobs"), refs("jobs")},
		{"jobs", []runtimeapi.NetworkRef{}, []runtimeapi.NetworkRef{}}, // disconnected from it
		{"container:" + other, nil, nil},
	} {
		got := dockerdir.Container{Networks: c.connected, Host: dockerdir.HostConfig{NetworkMode: c.mode}}.Attachments()
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("mode %s, connected to %v: -want +got\n%s", c.mode, c.connected, diff)
		}
	}
	for name, want := range map[string]bool{"": false, "default": false, "bridge": false, "host": false, "none": false, "container:x": false, "jobs": true} {
		if got := dockerdir.IsUserDefined(name); got != want {
			t.Errorf("IsUserDefined(%q) = %v", name, got)
		}
	}
}

func TestParseHosts(t *testing.T) {
	got := dockerdir.ParseHosts("127.0.0.1\tlocalhost\n\n# 10.0.0.1 x\nfe80::1%eth0 z\nbad line\n10.77.0.99 zz # mine\r\n::1 ip6-localhost ip6-loopback\n10.77.0.66\th.example h")
	want := []runtimeapi.HostLine{
		{Addr: netip.MustParseAddr("127.0.0.1"), Names: []string{"localhost"}},
		{Addr: netip.MustParseAddr("fe80::1%eth0"), Names: []string{"z"}},
		{Addr: netip.MustParseAddr("10.77.0.99"), Names: []string{"zz"}},
		{Addr: netip.MustParseAddr("::1"), Names: []string{"ip6-localhost", "ip6-loopback"}},
		{Addr: netip.MustParseAddr("10.77.0.66"), Names: []string{"h.example", "h"}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Fatalf("-want +got\n%s", diff)
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add("127.0.0.1 localhost # x\n::1 a\tb\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		for _, line := range dockerdir.ParseHosts(in) {
			if !line.Addr.IsValid() {
				t.Fatalf("%q: a line without an address", in)
			}
			for _, name := range line.Names {
				if name == "" || strings.ContainsAny(name, " \t\n#") {
					t.Fatalf("%q: name %q", in, name)
				}
			}
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(configFile), []byte(hostConfigFile))
	f.Add([]byte(`{"ID":"`+id+`","NetworkSettings":{"Networks":{"a":null}}}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, config, host []byte) {
		dir := t.TempDir()
		write(t, dir, map[string]string{"config.v2.json": string(config), "hostconfig.json": string(host)})
		c, err := dockerdir.Read(dir, topology.ContainerID(id))
		if err != nil {
			return
		}
		if c.ID != id || c.Label() == "" {
			t.Fatalf("read %+v from\n%s\n%s", c, config, host)
		}
		if c.JoinsContainer() && c.Attachments() != nil {
			t.Fatalf("a joiner has networks of its own: %+v", c)
		}
	})
}
