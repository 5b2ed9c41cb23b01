"""x"""
import subprocess, time, unittest
from harness import TestCase, run, CHECKOUT
from libvirt import NETWORK, start_libvirtd, virsh

NET = """<network><name>lan</name><forward mode='{mode}'/><bridge name='virbr7' stp='off'/>
<ip address='10.77.0.1' netmask='255.255.255.0'/></network>"""
SRV = """
import socket,sys
s=socket.create_server(("",80))
print("up",flush=True)
while True:
    c,a=s.accept(); c.sendall(a[0].encode()); c.close()
"""
ASK = """
import socket,sys
s=socket.socket(); s.settimeout(3)
try:
    s.connect((sys.argv[1],int(sys.argv[2]))); print(s.recv(100).decode())
except OSError as e: print(e)
"""
def ip(*c):
    for x in c: run(["ip",*x.split()],check=True)

class Explore(TestCase):
    def test_explore(self):
        start_libvirtd(self.addCleanup)
        import shutil
        ip("link add client type veth peer name ceth")
        ip("netns add client","link set ceth netns client","addr add 10.88.0.1/24 dev client","link set client up","-n client link set lo up", "-n client link set ceth up","-n client addr add 10.88.0.2/24 dev ceth", "-n client route add default via 10.88.0.1")
        def serve(ns):
            p=subprocess.Popen(["ip","netns","exec",ns,"python3","-c",SRV],stdout=subprocess.PIPE); p.stdout.readline(); self.addCleanup(p.kill); return p
        def ask(ns,a,port):
            pre=["ip","netns","exec",ns] if ns else []
            return run([*pre,"python3","-c",ASK,a,str(port)]).stdout.strip()
        serve("client")
        xml="<domain><uuid>A</uuid><metadata><hooks xmlns='urn:virt-hooks:1'><forward-port port='8080' to='10.77.0.5:80'/></hooks></metadata></domain>"
        for mode in ("nat",):
            f=self.write("n.xml",NET.format(mode=mode))
            print(virsh("net-create",f,uri=NETWORK))
            ip("netns add guest","link add vnetg type veth peer name eth0 netns guest","link set vnetg master virbr7","link set vnetg up","-n guest link set lo up","-n guest link set eth0 up","-n guest addr add 10.77.0.5/24 dev eth0","-n guest route add default via 10.77.0.1")
            print(open("/proc/sys/net/ipv4/ip_forward").read())
            p=serve("guest")
            time.sleep(1)
            print(mode,"before", ask("client","10.88.0.1",8080), ask("client","10.77.0.5",80), "out:",ask("guest","10.88.0.2",80))
            print(run([CHECKOUT/"examples/30-forward-port","web","start","begin","-"],input=xml))
            for who in ("client",""):
                for to in ("10.88.0.1","10.77.0.1"):
                    print(mode,who,to,ask(who,to,8080))
            print(run([CHECKOUT/"examples/30-forward-port","web","stopped","end","-"],input=xml))
            print(run(["iptables","-S"]).stdout, run(["iptables","-t","nat","-S"]).stdout)
            rule="table inet virt-hooks-x { chain nat { type nat hook postrouting priority srcnat; ip saddr 10.77.0.5 ip daddr != 10.77.0.0/24 masquerade; }; }"
            p.kill()
            run(["ip","netns","delete","guest"]); run(["ip","link","delete","vnetg"])
            print(virsh("net-destroy","lan",uri=NETWORK))
        m = NET.format(mode="open"); self.fail("x")
