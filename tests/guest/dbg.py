import sys, time, threading, os, faulthandler

sys.path.insert(0, os.path.dirname(__file__))
from test_template import *
from cowork_nsrun.guest.kernel import choose

t0 = time.time()


def p(*a):
    print(f"{time.time() - t0:6.2f}", *a, flush=True)


mons = []


def dog():
    time.sleep(int(sys.argv[1]))
    faulthandler.dump_traceback(all_threads=True)
    for m in mons:
        print(m.console[-3000:].decode(), bytes(m._messages), flush=True)
    os._exit(3)


threading.Thread(target=dog, daemon=True).start()


def ready(m):
    mons.append(m)
    p("booting")
    wait_ready(m)
    p("ready")


k = choose()
p(k.path)
with view_of() as view:
    s = Settings(128, cmdline="quiet nsrun.fs", shares={"nsrun": view})
    p("find")
    tpl = Template.find(k, find_beside("nsrun-agent"), s, ready)
    p("found", os.fstat(tpl.file.fileno()))
    for i in range(2):
        m = tpl.restore()
        mons.append(m)
        m.wait_running()
        p("running")
        print(Agent(m.connect).info())
        p("info")
        m.close()
    with Zygote(tpl) as z:
        for i in range(3):
            m = z.fork()
            mons.append(m)
            m.wait_running()
            p("running")
            print(Agent(m.connect).info())
            p("info")
            m.close()
