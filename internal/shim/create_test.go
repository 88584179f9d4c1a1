package shim

import (
	"bufio"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/runtimeapi"
)

func TestCreateMember(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	place := w.placement()
	place.Resolver = netip.MustParseAddr("10.77.0.1")
	p.answer(place, "")
	w.container(webID, "jobs", `"jobs":{"NetworkID":"`+network+`"}`, "")
	r := w.create(webID)
	w.passed(r, "--root", w.path("root"), "--log", w.path("log.json"), "--log-format", "json", "create", "--bundle", w.path("moby/"+webID), webID)
	want := w.tenantSpec(webID, `,"annotations":{"net.particle.directory":"`+w.path("containers/"+webID)+`","net.particle.network":"`+network+`"}`)
	if diff := cmp.Diff(want, w.read("moby/"+webID+"/config.json")); diff != "" {
		t.Errorf("specification: -want +got\n%s", diff)
	}
	if info, err := os.Stat(w.path("moby/" + webID + "/config.json")); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode of the specification: %v, %v", info.Mode(), err)
	}
	if got := w.read("resolv/" + webID); got != "nameserver 10.0.0.2\n" {
		t.Errorf("resolv.conf: %q", got)
	}
	if info, err := os.Stat(w.path("resolv/" + webID)); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode of resolv.conf: %v, %v", info.Mode(), err)
	}
	asked := []runtimeapi.Request{{Place: &runtimeapi.Place{
		Container: webID, Name: "web", Networks: []runtimeapi.NetworkRef{{Name: "jobs", ID: network}},
	}}}
	if diff := cmp.Diff(asked, p.questions()); diff != "" {
		t.Errorf("questions: -want +got\n%s", diff)
	}
	if left, _ := os.ReadDir(w.path("moby/" + webID)); len(left) != 1 {
		t.Errorf("files left in the bundle: %v", left)
	}
}

func TestCreateKeepsTheUsersResolvConf(t *testing.T) {
	w := newWorld(t)
	w.plugin()
	w.container(webID, "jobs", `"jobs":null`, "")
	w.write("mine/resolv.conf", "nameserver 127.0.0.1\n")
	w.bundle(webID, strings.Replace(w.read("moby/"+webID+"/config.json"), w.path("containers/"+webID+"/resolv.conf"), w.path("mine/resolv.conf"), 1))
	if r := w.create(webID); r.code != 0 || !strings.Contains(w.read("moby/"+webID+"/config.json"), w.path("mine/resolv.conf")) {
		t.Fatalf("%+v\n%s", r, w.read("moby/"+webID+"/config.json"))
	}
}

// Containers of others start as they were, with the plugin and without it.
func TestCreatePassesOthersThrough(t *testing.T) {
	for _, c := range []struct {
		name           string
		mode, networks string
		asked          int
		prepare        func(w *world)
	}{
		{"bridge", "default", `"bridge":{"NetworkID":"b1"}`, 0, nil},
		{"host", "host", `"host":null`, 0, nil},
		{"none", "none", ``, 0, nil},
		{"foreign network", "blue", `"blue":{"NetworkID":"b1"}`, 1, nil},
		{"a plugin", "jobs", ``, 0, func(w *world) {
			if err := os.Rename(w.path("moby"), w.path("plugins.moby")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("plugins.moby", w.path("moby")); err != nil {
				t.Fatal(err)
			}
			w.host.Config = w.path("runtime.json")
		}},
		{"disconnected from its only network", "jobs", ``, 0, nil},
		{"no container directory", "jobs", ``, 0, func(w *world) {
			if err := os.RemoveAll(w.path("containers/" + webID)); err != nil {
				t.Fatal(err)
			}
		}},
		{"another's directory", "jobs", ``, 0, func(w *world) {
			w.write("containers/"+webID+"/config.v2.json", `{"ID":"`+sideID+`"}`)
		}},
		{"no specification", "jobs", ``, 0, func(w *world) { w.bundle(webID, "{") }},
	} {
		for _, up := range []bool{true, false} {
			t.Run(c.name, func(t *testing.T) {
				w := newWorld(t)
				p := &plugin{}
				if up {
					p = w.plugin()
					p.answer(runtimeapi.Placement{}, "")
				}
				w.container(webID, c.mode, c.networks, "")
				if c.prepare != nil {
					c.prepare(w)
				}
				bundle := w.path("moby/" + webID)
				if c.name == "a plugin" {
					bundle = w.path("plugins.moby/" + webID)
				}
				before := w.read("moby/" + webID + "/config.json")
				w.passed(w.run(nil, "create", "--bundle", bundle, webID), "create", "--bundle", bundle, webID)
				if diff := cmp.Diff(before, w.read("moby/"+webID+"/config.json")); diff != "" {
					t.Errorf("the specification was edited: %s", diff)
				}
				if got := len(p.questions()); up && got != c.asked {
					t.Errorf("the plugin was asked %d times, want %d", got, c.asked)
				}
				if _, err := os.Stat(w.path("resolv")); err == nil {
					t.Error("files were written")
				}
			})
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	const member = `"jobs":null`
	const orOwn = "; or remove its label particle.namespace=shared, and it may get a namespace of its own"
	for _, c := range []struct {
		name, networks, host string
		spec                 func(string) string
		want                 string
	}{
		{"second network", `"jobs":null,"bridge":null`, ``, nil, "start container web: network jobs is shared by its containers, so a second network of one of them would reach into all: it is connected to bridge, jobs; disconnect it from all but one with `docker network disconnect`" + orOwn},
		{"privileged", member, `"Privileged":true`, nil, "start container web: --privileged would let it change network jobs for all containers there; remove --privileged and give it the devices and capabilities it needs one by one" + orOwn},
		{"capability", member, `"CapAdd":["CHOWN","net_raw"]`, nil, "start container web: --cap-add NET_RAW would let it change or listen in on network jobs, which it shares with other containers; remove it; ping works without it where the image uses ping sockets" + orOwn},
		{"all capabilities", member, `"CapAdd":["ALL"],"CapDrop":["ALL","NET_RAW"]`, nil, "start container web: --cap-add ALL would let it change or listen in on network jobs, which it shares with other containers; add --cap-drop NET_ADMIN --cap-drop NET_RAW --cap-drop SYS_ADMIN" + orOwn},
		{"mounting", member, `"CapAdd":["CAP_SYS_ADMIN"]`, nil, "start container web: --cap-add SYS_ADMIN would let it change or listen in on network jobs, which it shares with other containers; remove it" + orOwn},
		{"all capabilities but the network's", member, `"CapAdd":["ALL"],"CapDrop":["NET_ADMIN","NET_RAW"]`, nil, "start container web: --cap-add ALL would let it change or listen in on network jobs, which it shares with other containers; add --cap-drop NET_ADMIN --cap-drop NET_RAW --cap-drop SYS_ADMIN" + orOwn},
		{"host's proc", member, ``, mounted(`{"destination":"/host/proc","source":"/proc","type":"bind","options":["rbind"]}`),
			"start container web: its mount of /proc at /host/proc lets it write where the settings or the cgroups of the host are, and so change network jobs for all containers there; remove it, or mount it read-only with all that is mounted below it" + orOwn},
		{"sysctl", member, `"Sysctls":{"kernel.a":"1","net.ipv4.b":"1"}`, nil, "start container web: --sysctl net.ipv4.b would hold for all containers on network jobs; remove it" + orOwn},
		{"MAC", `"jobs":{"DesiredMacAddress":"02:42:ac:11:00:02"}`, ``, nil, "start container web: in the shared namespace of network jobs it has no interface, hence no MAC address; remove --mac-address" + orOwn},
		{"user namespace", member, ``, func(s string) string {
			return strings.Replace(s, `{"type":"network"}`, `{"type":"network"},{"type":"user"}`, 1)
		}, "start container web: network jobs belongs to the host's users, and this container has user ids of its own (userns-remap); add --userns=host" + orOwn},
		{"port", member, `"PortBindings":{"80/tcp":[{"HostPort":"80"}]}`, nil, "start container web: publishing ports (80/tcp) is not possible on network jobs; remove -p; the container's own address can be reached from its network" + orOwn},
		{"all ports", member, `"PublishAllPorts":true`, nil, "start container web: publishing ports is not possible on network jobs; remove -P; the container's own address can be reached from its network" + orOwn},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.plugin()
			w.container(webID, "jobs", c.networks, c.host)
			w.label(webID, "shared")
			if c.spec != nil {
				w.bundle(webID, c.spec(w.read("moby/"+webID+"/config.json")))
			}
			r := w.create(webID)
			if r.code != 1 || r.stdout != "" {
				t.Fatalf("not refused: %+v", r)
			}
			if got := w.logged(); got != c.want || r.stderr != got+"\n" {
				t.Errorf("-want +got\n%s\nstderr %q", cmp.Diff(c.want, got), r.stderr)
			}
		})
	}
	for name, host := range map[string]string{
		"all but three": `"CapAdd":["all"],"CapDrop":["CAP_NET_ADMIN","net_raw","Sys_Admin"]`,
		"other things":  `"CapAdd":["BPF","PERFMON","SYS_MODULE","SYS_PTRACE","SYS_RAWIO"],"Sysctls":{"kernel.a":"1"},"PortBindings":{}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.plugin()
			w.container(webID, "jobs", member, host)
			if r := w.create(webID); r.code != 0 {
				t.Fatalf("refused: %+v", r)
			}
		})
	}
}

func TestRunAndRestoreAreRefusedForMembers(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.container(webID, "jobs", `"jobs":null`, "")
	for _, command := range []string{"run", "restore"} {
		r := w.run(nil, command, "--bundle", w.path("moby/"+webID), webID)
		if r.code != 1 || !strings.Contains(r.stderr, "`"+command+"` has no such moment") {
			t.Errorf("%s: %+v", command, r)
		}
	}
	p.answer(runtimeapi.Placement{}, "")
	w.passed(w.run(nil, "run", "--bundle", w.path("moby/"+webID), webID), "run", "--bundle", w.path("moby/"+webID), webID)
}

func TestCreateJoiner(t *testing.T) {
	const forged = `"net.particle.directory":"/forged"`
	joiner := func(w *world, target, host string) string {
		w.container(webID, "jobs", `"jobs":null`, "")
		w.container(sideID, "container:"+webID, "", host)
		w.write("proc-7-ns-net", "")
		spec := w.spec(webID, `,"annotations":{`+forged+`}`, `{"type":"network","path":"`+target+`"}`)
		w.bundle(sideID, spec)
		return spec
	}
	t.Run("of a member", func(t *testing.T) {
		w := newWorld(t)
		if err := os.Symlink(w.path("netns/"+network), w.path("ns")); err != nil { // another path to the same file
			t.Fatal(err)
		}
		spec := joiner(w, w.path("ns"), "")
		w.write("resolv/"+webID, "nameserver 10.0.0.9\n")
		if r := w.create(sideID); r.code != 0 {
			t.Fatal(r)
		}
		want := strings.NewReplacer(`"CAP_NET_RAW",`, ``, `"net.a":"1"`, ``, w.path("ns")+`"}]`, w.path("netns/"+network)+`"}],"readonlyPaths":["/proc/sys/net"]`,
			forged, strings.Join(annotations(w, webID), ","),
			w.path("containers/"+webID+"/resolv.conf"), w.path("resolv/"+webID)).Replace(spec)
		if diff := cmp.Diff(want, w.read("moby/"+sideID+"/config.json")); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	})
	// `docker create` came before the other container did, so Docker wrote down
	// what was typed.
	t.Run("by name", func(t *testing.T) {
		w := newWorld(t)
		joiner(w, w.path("netns/"+network), "")
		for _, typed := range []string{"web", webID[:12], "c0ffee123456"} {
			w.write("containers/"+sideID+"/hostconfig.json", `{"NetworkMode":"container:`+typed+`"}`)
			r := w.create(sideID)
			if got := w.read("moby/" + sideID + "/config.json"); r.code != 0 || !strings.Contains(got, annotations(w, webID)[1]) {
				t.Errorf("%s: %+v\n%s", typed, r, got)
			}
		}
		// All that Docker would show it is the user's own.
		w.bundle(sideID, strings.ReplaceAll(w.spec(webID, "", `{"type":"network","path":"`+w.path("netns/"+network)+`"}`),
			w.path("containers/"+webID), "/mine"))
		w.write("containers/"+sideID+"/hosts", "")
		w.bundle(sideID, strings.Replace(w.read("moby/"+sideID+"/config.json"), "/mine/hosts", w.path("containers/"+sideID+"/hosts"), 1))
		w.write("containers/"+sideID+"/hostconfig.json", `{"NetworkMode":"container:web"}`)
		if r := w.create(sideID); r.code != 1 || !strings.Contains(w.logged(), "which container web is; create it anew with --network container:ID") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("not known to Docker", func(t *testing.T) {
		w := newWorld(t)
		spec := strings.ReplaceAll(joiner(w, w.path("netns/"+network), ""), w.path("containers/"+webID), "/mine")
		w.bundle(sideID, spec)
		want := "start container bbbb456789ab: it joins a container of a particle network, and nothing leads to what Docker knows of it; leave at least one of"
		if r := w.create(sideID); r.code != 1 || !strings.HasPrefix(w.logged(), want) {
			t.Errorf("%+v", r)
		}
	})
	for host, want := range map[string]string{
		`"CapAdd":["SYS_ADMIN"]`:         "start container web: --cap-add SYS_ADMIN would let it change or listen in on the network of the container it joins",
		`"CapAdd":["NET_ADMIN"]`:         "start container web: --cap-add NET_ADMIN would let it change or listen in on the network of the container it joins",
		`"Sysctls":{"net.ipv4.b":"1"}`:   "start container web: --sysctl net.ipv4.b would hold for all containers on the network of the container it joins",
		`"Sysctls":{"net/core/max":"1"}`: "start container web: --sysctl net/core/max would hold",
	} {
		t.Run(host, func(t *testing.T) {
			w := newWorld(t)
			joiner(w, w.path("netns/"+network), host)
			if r := w.create(sideID); r.code != 1 || !strings.HasPrefix(w.logged(), want) {
				t.Errorf("%+v", r)
			}
		})
	}
	t.Run("privileged", func(t *testing.T) {
		w := newWorld(t)
		joiner(w, w.path("netns/"+network), `"Privileged":true`)
		r := w.create(sideID)
		if want := "--privileged would let it change the network of the container it joins for all containers there"; r.code != 1 || !strings.Contains(w.logged(), want) {
			t.Errorf("%+v", r)
		}
	})
	t.Run("of one with its own namespace", func(t *testing.T) {
		w := newWorld(t)
		spec := joiner(w, w.path("proc-7-ns-net"), `"Privileged":true`)
		w.write("resolv/"+webID, "nameserver 10.0.0.9\n")
		want := strings.NewReplacer(w.path("containers/"+webID+"/resolv.conf"), w.path("resolv/"+webID), forged, "").Replace(spec)
		if r := w.create(sideID); r.code != 0 || w.read("moby/"+sideID+"/config.json") != want {
			t.Errorf("%+v\n%s", r, cmp.Diff(want, w.read("moby/"+sideID+"/config.json")))
		}
	})
	t.Run("of another", func(t *testing.T) {
		w := newWorld(t)
		want := strings.Replace(joiner(w, w.path("proc-7-ns-net"), `"Privileged":true`), forged, "", 1)
		if r := w.create(sideID); r.code != 0 || w.read("moby/"+sideID+"/config.json") != want {
			t.Errorf("%+v", r)
		}
	})
}

// annotations are those of a container that joined the named one, in order.
func annotations(w *world, joined string) []string {
	return []string{
		`"net.particle.directory":"` + w.path("containers/"+sideID) + `"`,
		`"net.particle.join":"` + joined + `"`,
		`"net.particle.network":"` + network + `"`,
	}
}

func TestCreateReportsThePluginsRefusal(t *testing.T) {
	w := newWorld(t)
	w.plugin().answer(w.placement(), "address guard: not loaded; mount bpffs")
	w.container(webID, "jobs", `"jobs":null`, "")
	w.create(webID)
	if got, want := w.logged(), "start container web: address guard: not loaded; mount bpffs"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCreateDistrustsNamespacesElsewhere(t *testing.T) {
	w := newWorld(t)
	place := w.placement()
	place.Namespace = "/proc/1/ns/net"
	w.plugin().answer(place, "")
	w.container(webID, "jobs", `"jobs":null`, "")
	if r := w.create(webID); r.code != 1 || !strings.Contains(r.stderr, "/proc/1/ns/net") {
		t.Errorf("%+v", r)
	}
}

func TestCreateWithoutThePlugin(t *testing.T) {
	const refused = "start container web: network jobs is a particle network, and the particle plugin does not answer: "
	ours := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/networks/jobs" && r.URL.Path != "/networks/"+network {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"Name":"jobs","Driver":"particle"}`))
	}
	anything := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"Driver":"particle"}`)) }
	for _, c := range []struct {
		name, networks string
		index          string
		api            http.HandlerFunc
		refused        bool
	}{
		{"namespace known", `"jobs":{"NetworkID":"` + network + `"}`, "", nil, true},
		{"id in the index", `"jobs":{"NetworkID":"c0ffee"}`, "c0ffee\n", nil, true},
		{"name in the index", `"jobs":{}`, "c0ffee jobs\n", nil, true},
		{"id not in the index", `"jobs":{"NetworkID":"beef"}`, "c0ffee jobs\n", anything, false},
		{"driver known to Docker", `"jobs":{}`, "c0ffee\n", ours, true},
		{"driver known by the plugin's name", `"jobs":{}`, "", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"Driver":"particle-net:latest"}`))
		}, true},
		{"another driver", `"jobs":{}`, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"Driver":"bridge"}`)) }, false},
		{"no such network", `"jobs":{}`, "", http.NotFound, false},
		{"nobody knows", `"jobs":{}`, "", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.container(webID, "jobs", c.networks, "")
			if c.index != "" {
				w.write("networks", c.index)
			}
			if c.api != nil {
				l, err := net.Listen("unix", w.path("docker.sock"))
				if err != nil {
					t.Fatal(err)
				}
				server := &http.Server{Handler: c.api}
				go func() { _ = server.Serve(l) }()
				defer server.Close()
			}
			r := w.create(webID)
			if c.refused && (r.code != 1 || !strings.HasPrefix(w.logged(), refused) || !strings.HasSuffix(w.logged(), "run `docker plugin enable particle-net`")) {
				t.Errorf("%+v", r)
			}
			if !c.refused && r.code != 0 {
				t.Errorf("refused: %+v", r)
			}
		})
	}
}

// A daemon that takes the connection and says nothing must not hold the start.
func TestDriverGivesUp(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("unix", w.path("docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(conn).ReadString('\n')
		asked <- line
	}()
	if got := w.host.driver("a b/c"); got != "" {
		t.Errorf("driver %q", got)
	}
	if got, want := <-asked, "GET /networks/a%20b%2Fc HTTP/1.0\r\n"; got != want {
		t.Errorf("request %q, want %q", got, want)
	}
}

func FuzzDriverIn(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"Driver\":\"particle\"}"))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if driverIn(reply) != "" && !strings.HasPrefix(string(reply), "HTTP/1.") {
			t.Fatalf("%q has a driver", reply)
		}
	})
}

// Whose container it is, the later commands ask annotations that users may set, too: those
// of others lose them.
func TestCreateDisclaimsAnnotations(t *testing.T) {
	for name, c := range map[string]struct {
		mode, networks string
		prepare        func(w *world)
	}{
		"bridge":          {"default", `"bridge":{"NetworkID":"b1"}`, nil},
		"foreign network": {"blue", `"blue":{"NetworkID":"b1"}`, nil},
		"joins another's": {"container:" + sideID, "", nil},
		"no container directory": {"default", "", func(w *world) {
			if err := os.RemoveAll(w.path("containers/" + webID)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.plugin().answer(runtimeapi.Placement{}, "")
			w.container(webID, c.mode, c.networks, "")
			others := `"annotations":{"net.particles":"theirs"}`
			w.bundle(webID, w.spec(webID, `,"annotations":{"net.particles":"theirs","net.particle.namespace":"own","net.particle.directory":"/forged"}`, `{"type":"network"}`))
			if c.prepare != nil {
				c.prepare(w)
			}
			if r := w.create(webID); r.code != 0 {
				t.Fatal(r)
			}
			if got := w.read("moby/" + webID + "/config.json"); !strings.Contains(got, others) {
				t.Errorf("the specification is %s", got)
			}
		})
	}
}
