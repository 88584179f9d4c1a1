package shim

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/runtimeapi"
)

func ownAnnotations(w *world, reason string) string {
	return `,"annotations":{"net.particle.directory":"` + w.path("containers/"+webID) + `","net.particle.namespace":"own","net.particle.network":"` + network +
		`","net.particle.reason":"` + reason + `"}`
}

// What cannot be shared is left in the specification, but for the name servers.
func TestCreateOwn(t *testing.T) {
	const member = `"jobs":null`
	for _, c := range []struct{ name, networks, host, label, reason string }{
		{"label", member, ``, "own", "label particle.namespace=own"},
		{"label before all else", member, `"Privileged":true`, "own", "label particle.namespace=own"},
		{"second network", `"jobs":null,"blue":null`, ``, "", "networks blue, jobs"},
		{"privileged", member, `"Privileged":true`, "", "--privileged"},
		{"capability", member, `"CapAdd":["net_raw"]`, "", "--cap-add NET_RAW"},
		{"all capabilities", member, `"CapAdd":["ALL"]`, "", "--cap-add ALL"},
		{"mounting", member, `"CapAdd":["SYS_ADMIN"]`, "", "--cap-add SYS_ADMIN"},
		{"sysctl", member, `"Sysctls":{"net.ipv4.b":"1"}`, "", "--sysctl net.ipv4.b"},
		{"MAC", `"jobs":{"DesiredMacAddress":"02:42:ac:11:00:02"}`, ``, "", "--mac-address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			p := w.plugin()
			w.container(webID, "jobs", c.networks, c.host)
			if c.label != "" {
				w.label(webID, c.label)
			}
			if r := w.create(webID); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			if asked := p.questions(); len(asked) != 1 || !asked[0].Place.Own {
				t.Errorf("questions: %+v", asked)
			}
			resolv := w.path("resolv/" + webID)
			if c.name == "second network" {
				resolv = w.path("containers/" + webID + "/resolv.conf") // Docker's resolver knows the names there
			}
			want := strings.Replace(w.spec(webID, "", `{"type":"network"}`), w.path("containers/"+webID+"/resolv.conf"), resolv, 1)
			want = strings.TrimSuffix(want, "}") + ownAnnotations(w, c.reason) + "}"
			if diff := cmp.Diff(want, w.read("moby/"+webID+"/config.json")); diff != "" {
				t.Errorf("specification: -want +got\n%s", diff)
			}
		})
	}
}

func TestCreateOwnRefuses(t *testing.T) {
	for host, want := range map[string]string{
		`"Privileged":true,"PublishAllPorts":true`:                               "start container web: publishing ports is not possible on network jobs; remove -P",
		`"CapAdd":["NET_ADMIN"],"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}`: "start container web: publishing ports (80/tcp) is not possible on network jobs; remove -p",
	} {
		w := newWorld(t)
		w.plugin()
		w.container(webID, "jobs", `"jobs":null`, host)
		if r := w.create(webID); r.code != 1 || !strings.HasPrefix(w.logged(), want) {
			t.Errorf("%s: %+v", host, r)
		}
	}
	for name, change := range map[string]func(w *world, p *plugin){
		"start container web: the particle plugin does not know containers with a namespace of their own": func(w *world, p *plugin) {
			w.label(webID, "own")
			p.mu.Lock()
			p.old = true
			p.mu.Unlock()
		},
		"start container web: its label particle.namespace=mine means nothing; give it the value own or shared": func(w *world, _ *plugin) {
			w.label(webID, "mine")
		},
	} {
		w := newWorld(t)
		p := w.plugin()
		w.container(webID, "jobs", `"jobs":null`, "")
		change(w, p)
		before := w.read("moby/" + webID + "/config.json")
		if r := w.create(webID); r.code != 1 || !strings.HasPrefix(w.logged(), name) || w.read("moby/"+webID+"/config.json") != before {
			t.Errorf("%+v", r)
		}
	}
	// The labels of others are nobody's business.
	w := newWorld(t)
	w.plugin().answer(runtimeapi.Placement{}, "")
	w.container(webID, "blue", `"blue":null`, `"Privileged":true`)
	for _, label := range []string{"mine", "own", "shared"} {
		w.label(webID, label)
		if r := w.create(webID); r.code != 0 || w.read("moby/"+webID+"/config.json") != w.spec(webID, "", `{"type":"network"}`) {
			t.Errorf("%s: %+v", label, r)
		}
	}
}

// own writes runc's record of a container with a namespace of its own.
func (w *world) ownState(pid int, start uint64) {
	w.t.Helper()
	w.state(webID, pid, start, append(w.owner(), labelOwn, annotationReason+"=--cap-add NET_ADMIN=x")...)
	file := "root/" + webID + "/state.json"
	w.write(file, strings.Replace(w.read(file), `"path":"`+w.path("netns/"+network)+`"`, `"path":""`, 1))
}

func TestLifeOfAnOwnNamespace(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.container(webID, "jobs", `"jobs":null`, `"Privileged":true`)
	pid, start, kill := running(t)
	w.ownState(pid, start)
	root := []string{"--root", w.path("root")}
	w.passed(w.run(nil, append(root, "start", webID)...), append(root, "start", webID)...)
	asked := p.questions()
	if len(asked) != 1 || asked[0].Claim == nil || !asked[0].Claim.Own || asked[0].Claim.Reason != "--cap-add NET_ADMIN=x" || asked[0].Claim.Pid != pid || asked[0].Claim.Network != network || len(asked[0].Claim.Hosts) != 2 {
		t.Errorf("questions: %+v", asked)
	}
	const process = `{"capabilities":{"bounding":["CAP_NET_RAW"]}}`
	w.write("process.json", process)
	exec := append(root, "exec", "--cap", "CAP_NET_ADMIN", "--process", w.path("process.json"), webID)
	w.passed(w.run(nil, exec...), exec...)
	if got := w.read("process.json"); got != process {
		t.Errorf("exec was confined: %s", got)
	}
	kill()
	w.write("resolv/"+webID, "")
	w.passed(w.run(nil, append(root, "delete", webID)...), append(root, "delete", webID)...)
	if asked := p.questions(); len(asked) != 2 || asked[1].Release == nil {
		t.Errorf("questions: %+v", asked)
	}
	if _, err := os.Stat(w.path("resolv/" + webID)); err == nil {
		t.Error("its resolv.conf was left")
	}
}

// An annotation that a user gives to a container in a tenant namespace frees it
// of nothing.
func TestForgedOwnNamespace(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.container(webID, "jobs", `"jobs":null`, "")
	w.bundle(webID, w.spec(webID, `,"annotations":{"`+annotationNamespace+`":"own","`+annotationReason+`":"whim"}`, `{"type":"network"}`))
	if r := w.create(webID); r.code != 0 || strings.Contains(w.read("moby/"+webID+"/config.json"), annotationNamespace) || strings.Contains(w.read("moby/"+webID+"/config.json"), annotationReason) {
		t.Errorf("%+v\n%s", r, w.read("moby/"+webID+"/config.json"))
	}
	w.state(webID, os.Getpid(), 1, append(w.owner(), labelOwn)...)
	w.write("process.json", `{"capabilities":{"bounding":["CAP_NET_RAW"]}}`)
	w.run(nil, "--root", w.path("root"), "exec", "--process", w.path("process.json"), webID)
	if got := w.read("process.json"); strings.Contains(got, "NET_RAW") {
		t.Errorf("exec was not confined: %s", got)
	}
	w.run(nil, "--root", w.path("root"), "start", webID)
	if asked := p.questions(); len(asked) != 2 || asked[1].Claim == nil || asked[1].Claim.Own {
		t.Errorf("questions: %+v", asked)
	}
}
